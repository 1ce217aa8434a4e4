"""Networks of the real timm, which is not in the lock. It runs in a process and a folder of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("timm==1.0.31", "torchvision==0.28.0")
HERE = Path(__file__).parent
# The wheel of torchvision is built for one build of torch. Where it does not fit, its compiled operators are missing. timm never calls
# them, so naming two of them suffices for the import.
PREPARE = """
import sys, torch
sys.path.append({packages!r})
sys.path.append({here!r})
try:
    import torchvision
except RuntimeError:
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{{operator}}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import numpy as np, timm
from pathlib import Path
from safetensors.torch import save_file
from loopline.errors import LooplineError
from loopline.lib import sessions
from loopline.tasks import image
from loopline.tasks.classification import training
from test_classification_training import stripes
from test_pretrained_images import begun, configured
"""
TRAIN = """
name, folder = {name!r}, Path({folder!r})
published = timm.create_model(name, num_classes=7)
published.train()
published(torch.rand(16, 3, 64, 64) if "vit" not in name else torch.rand(16, 3, 160, 160))
save_file(published.state_dict(), folder / "published.safetensors")
side = "auto" if "vit" in name else 64
model = configured(architecture=f"timm:{{name}}", pretrained=str(folder / "published.safetensors"), height=side)
train, val = stripes(30, seed=0), stripes(15, seed=1)
training.train(train, val, model, seed=0, out=folder / "train", work=folder / "work", log=lambda *_: None)
spec = training.export(folder / "train", train, val, model, out=folder / "model.onnx")
network, _ = training._load(folder / "train")
body = {{key: tensor for key, tensor in published.state_dict().items() if not key.startswith(("classifier", "head", "fc"))}}
for key, tensor in body.items():
    assert torch.equal(network.state_dict()[f"body.{{key}}"], tensor), key
mean = torch.tensor(published.pretrained_cfg["mean"]) * 255
assert torch.allclose(network.pixel_mean, mean), network.pixel_mean
assert spec.image.height == (160 if side == "auto" else 64), spec.image
inputs = {{"image": image.batch(train.inputs, spec.image)}}
answers, expected = sessions.run(folder / "model.onnx", inputs), training.reference(folder / "train")(inputs)
for output in expected:
    np.testing.assert_allclose(answers[output], expected[output], atol=2e-3)
print("same answers")
"""
REFUSALS = """
def refused(**train):
    try:
        begun(configured(**train))
    except LooplineError as error:
        return str(error)
    raise AssertionError(train)
unknown = refused(architecture="timm:test_resnett")
assert "timm has no model 'test_resnett'. Similar names: test_resnet" in unknown, unknown
tag = refused(architecture="timm:test_resnet.nonsense", pretrained=None, probe=False)
assert "timm cannot make 'test_resnet.nonsense' for this input" in tag, tag
size = refused(architecture="timm:test_vit", height=100, pretrained=None, probe=False)
assert "or set input.height and input.width to auto" in size, size
missing = refused(architecture="timm:resnet18")
assert "could not be fetched from timm/resnet18.a1_in1k on the Hugging Face Hub" in missing, missing
assert "give the path of their safetensors file" in missing, missing
print("refused")
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The folder of the packages; without a package index the tests are skipped, but for CI's."""
    folder = tmp_path_factory.mktemp("packages")
    uv = Path(sys.executable).parent / "uv"
    install = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--no-deps", "--target", folder, *PACKAGES]
    fetched = subprocess.run(install, capture_output=True, text=True)
    if fetched.returncode and not os.environ.get("LOOPLINE_REQUIRE_SDKS"):
        pytest.skip(f"the packages cannot be fetched: {fetched.stderr[-200:]}")
    assert fetched.returncode == 0, fetched.stderr
    return folder


def run(packages, script):
    """Run the script after the imports; return what it prints."""
    code = PREPARE.format(packages=str(packages), here=str(HERE)) + script
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(packages / "empty")}
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_a_network_of_timm_is_probed_and_exported(packages, tmp_path, name):
    assert "same answers" in run(packages, TRAIN.format(name=name, folder=str(tmp_path)))


def test_an_unknown_name_and_a_missing_network_are_one_message_each(packages):
    assert "refused" in run(packages, REFUSALS)


def test_without_timm_the_message_says_what_to_install():
    code = (
        f"import sys; sys.path.append({str(HERE)!r}); sys.modules['timm'] = None\n"
        "from test_pretrained_images import begun, configured\n"
        "begun(configured(architecture='timm:resnet18'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 1
    assert "LooplineError: architecture: timm cannot be imported" in done.stderr
    assert "pip install timm and a torchvision that fits the installed torch" in done.stderr
