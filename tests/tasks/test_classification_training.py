"""The classifier from encoded images to ONNX."""

import hashlib
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from loopline import settings
from loopline.data.manifest import Split
from loopline.errors import LooplineError
from loopline.tasks import image
from loopline.tasks.classification import architectures
from loopline.tasks.classification import training as classification
from loopline.tasks.classification.parameters import ClassificationSettings
from loopline.tasks.classification.residual import ResidualNetwork
from loopline.tasks.spec import ImageInput
from loopline.training import loop

SIDE = 16


def stripes(n: int, *, seed: int, labels: tuple[str, ...] = ("across", "blank", "down")) -> Split:
    """Return noisy grey PNGs with horizontal stripes, without stripes, or with vertical ones."""
    random = np.random.default_rng(seed)
    wave = np.sin(np.arange(SIDE) * 1.5) * 60
    patterns = [np.tile(wave[:, None], (1, SIDE)), np.zeros((SIDE, SIDE)), np.tile(wave, (SIDE, 1))]
    targets = np.arange(n) % len(labels)
    inputs = []
    for target in targets:
        buffer = io.BytesIO()
        pixels = patterns[target] + 120 + random.normal(0, 20, (SIDE, SIDE))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "PNG")
        inputs.append(buffer.getvalue())
    ids = [hashlib.sha256(data).hexdigest() for data in inputs]
    return Split(ids, inputs, targets.astype(np.int64), np.full((n, 2), SIDE, np.int32), labels)


def tiny(**change: Any) -> ClassificationSettings:
    """Return the default settings with a small network and small images."""
    _, model = settings.model("classifier", Path(__file__).parents[1] / "params.yaml")
    assert isinstance(model, ClassificationSettings)
    small = {"epochs": 6, "batch_size": 16, "width": 8, "learning_rate": 0.01, "patience": 6} | change
    shape = model.input.model_copy(update={"height": SIDE, "width": SIDE, "channels": 1})
    return model.model_copy(update={"input": shape, "train": model.train.model_copy(update=small)})


def run(folder: Path, model: ClassificationSettings, *, train: Split | None = None) -> Path:
    out = folder / "train"
    classification.train(
        train or stripes(120, seed=0),
        stripes(45, seed=1),
        model,
        seed=0,
        out=out,
        work=folder / "work",
        log=lambda *_: None,
    )
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("classifier"), tiny())


@pytest.fixture(scope="module")
def graph(trained: Path) -> Path:
    out = trained.parent / "model.onnx"
    spec = classification.export(trained, stripes(120, seed=0), stripes(45, seed=1), tiny(), out=out)
    assert spec.labels == ("across", "blank", "down")
    assert spec.image == ImageInput(height=SIDE, width=SIDE, channels=1)
    return out


class Killed(Exception):
    pass


def test_a_training_whose_labels_were_corrected_does_not_resume_with_the_old_ones(tmp_path: Path) -> None:
    before = stripes(120, seed=0)
    corrected = replace(before, targets=np.roll(np.asarray(before.targets), 1))

    def kill(epoch: int, _: dict[str, float]) -> None:
        raise Killed(epoch)

    work = tmp_path / "killed/work"
    with pytest.raises(Killed):
        classification.train(
            before, stripes(45, seed=1), tiny(), seed=0, out=tmp_path / "killed/train", work=work, log=kill
        )
    assert list(work.iterdir())
    resumed, fresh = (run(tmp_path / name, tiny(), train=corrected) for name in ("killed", "fresh"))
    assert (resumed / "model.safetensors").read_bytes() == (fresh / "model.safetensors").read_bytes()


def test_training_learns_and_leaves_its_files_but_no_checkpoint(trained: Path) -> None:
    history = (trained / "history.csv").read_text().splitlines()
    assert history[0] == "epoch,train_loss,val_loss,val_accuracy"
    assert len(history) == 1 + 6
    assert float(history[-1].split(",")[-1]) > 0.9
    assert sorted(path.name for path in trained.iterdir()) == ["config.json", "history.csv", "model.safetensors"]
    assert not list((trained.parent / "work").iterdir())


def test_two_trainings_write_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    again = run(tmp_path, tiny())
    for path in trained.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_torch_and_onnx_agree_at_every_batch_size(trained: Path, graph: Path) -> None:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    reference = classification.reference(trained)
    for n in (1, 3, 17):
        pixels = np.random.default_rng(n).integers(0, 256, (n, SIDE, SIDE, 1), np.uint8)
        probabilities, embedding = session.run(["probabilities", "embedding"], {"image": pixels})
        expected = reference({"image": pixels})
        assert probabilities.shape == (n, 3)
        assert embedding.shape == (n, 8)
        np.testing.assert_allclose(probabilities, expected["probabilities"], atol=1e-5)
        np.testing.assert_allclose(embedding, expected["embedding"], atol=1e-4)
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_only_convolutions_and_what_joins_them_are_quantized(graph: Path) -> None:
    model = onnx.load(graph)
    kinds = {node.name: node.op_type for node in model.graph.node}
    excluded = classification.nodes_to_exclude(model)
    assert "BatchNormalization" not in kinds.values(), "it is folded into the convolutions"
    assert {"Softmax", "Gemm"} <= {kinds[name] for name in excluded}
    assert "Conv" not in {kinds[name] for name in excluded}


def test_training_images_have_an_embedding_of_unit_variance(trained: Path) -> None:
    network, spec = classification._load(trained)
    assert spec.image is not None
    pixels = image.batch([item for item in stripes(120, seed=0).inputs if isinstance(item, bytes)], spec.image)
    deviations = network.projection(network.features(torch.from_numpy(pixels))).std(0, correction=0)
    assert deviations[0].item() == pytest.approx(1, abs=0.01)


def test_another_training_starts_from_its_blocks_and_has_its_own_head(trained: Path) -> None:
    network = ResidualNetwork(ImageInput(height=SIDE, width=SIDE, channels=3), classes=5, width=8, embedding=8)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    architectures.start_from(network, str(trained / "model.safetensors"))
    source, after = load_file(trained / "model.safetensors"), network.state_dict()
    assert all(torch.equal(after[name], source[name]) for name in after if name.startswith("blocks."))
    assert torch.equal(after["head.weight"], before["head.weight"])
    assert torch.equal(after["stem.conv.weight"], before["stem.conv.weight"]), "three channels do not fit one"


def test_a_training_that_starts_from_a_good_network_is_better(trained: Path, tmp_path: Path) -> None:
    losses = []
    for name, pretrained in (("nothing", None), ("good", str(trained / "model.safetensors"))):
        out = run(tmp_path / name, tiny(epochs=1, learning_rate=0.001, pretrained=pretrained))
        losses.append(float((out / "history.csv").read_text().splitlines()[1].split(",")[2]))
    assert losses[1] < losses[0] / 2


@pytest.mark.parametrize(
    ("content", "width", "message"),
    [
        (None, 8, "no file 'resnet18'"),
        (b"PK\x03\x04 a pickle", 8, "not a safetensors file"),
        (b"", 12, "set architecture and width"),
    ],
)
def test_a_bad_pretrained_setting_is_explained(
    trained: Path, tmp_path: Path, content: bytes | None, width: int, message: str
) -> None:
    path = "resnet18"
    if content is not None:
        path = str(tmp_path / "model.safetensors")
        Path(path).write_bytes(content or (trained / "model.safetensors").read_bytes())
    network = ResidualNetwork(ImageInput(height=SIDE, width=SIDE, channels=1), classes=3, width=width, embedding=8)
    with pytest.raises(LooplineError, match=message):
        architectures.start_from(network, path)


def test_the_default_network_is_small() -> None:
    _, model = settings.model("classifier", Path(__file__).parents[1] / "params.yaml")
    assert isinstance(model, ClassificationSettings)
    network = ResidualNetwork(ImageInput(**model.input.model_dump()), classes=10, width=model.train.width, embedding=8)
    assert sum(parameter.numel() for parameter in network.parameters()) <= 300_000


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 1), (28, 28, 1), (64, 48, 3), (224, 224, 3)])
def test_any_image_size_has_a_network(height: int, width: int, channels: Any) -> None:
    network = ResidualNetwork(
        ImageInput(height=height, width=width, channels=channels), classes=4, width=8, embedding=2
    ).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, height, width, channels, dtype=torch.uint8)).shape == (2, 4)
    assert loop.device().type in ("cpu", "cuda")


FEW_CHANNELS = """
import torch
from loopline.tasks.classification.residual import Pointwise
torch.manual_seed(0)
for channels in (3, 4, 8, 12):
    module = Pointwise(channels, 16, 1, 2, bias=False).to(memory_format=torch.channels_last).train()
    for n in (7, 29, 32) * 20:
        x = torch.randn(n, channels, 14, 14).to(memory_format=torch.channels_last).requires_grad_()
        upstream = torch.randn(n, 16, 7, 7)
        module.weight.grad = None
        module(x).backward(upstream)
        right = torch.einsum("nohw,nihw->oi", upstream.double(), x.detach()[:, :, ::2, ::2].double())
        assert torch.allclose(module.weight.grad[:, :, 0, 0].double(), right, atol=1e-3), (channels, n)
"""


def test_a_strided_1x1_convolution_of_few_channels_has_the_right_gradient():
    """Runs in its own process, which dies sooner or later if oneDNN writes beyond its buffer."""
    subprocess.run([sys.executable, "-c", FEW_CHANNELS], check=True)
