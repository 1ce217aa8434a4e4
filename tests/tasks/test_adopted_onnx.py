"""A finished ONNX file becomes an image classifier: graphs as torch's exporter writes them, and what is wrong with others."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from test_classification_training import SIDE, stripes

from loopline import settings
from loopline.errors import LooplineError
from loopline.lib import sessions
from loopline.tasks import image
from loopline.tasks.classification import onnx_file, onnx_model, training
from loopline.tasks.classification.parameters import ClassificationSettings
from loopline.training import parity, quantization

MEAN, DEVIATION = (110.0, 120.0, 130.0), (60.0, 61.0, 62.0)
LABELS = ("down", "across", "blank")  # another order than that of the data


def network(seed: int = 0) -> torch.nn.Module:
    """A small network in the usual form: convolutions, normalisation, pool, head."""
    torch.manual_seed(seed)
    layers = [
        torch.nn.Conv2d(3, 8, 3, 2),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3),
        torch.nn.ReLU(),
    ]
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 3))


def learnt() -> torch.nn.Module:
    """The network, which has learnt the stripes in the class order of LABELS, from pixels scaled by MEAN and DEVIATION."""
    split, model = stripes(240, seed=5), network()
    targets = torch.tensor([LABELS.index(split.labels[target]) for target in split.targets])
    pixels = image.batch(split.inputs, image.ImageInput(height=SIDE, width=SIDE, channels=3))  # type: ignore[arg-type]
    x = torch.from_numpy(((pixels - np.array(MEAN)) / np.array(DEVIATION)).astype(np.float32).transpose(0, 3, 1, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), targets).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def trained() -> torch.nn.Module:
    return learnt()


def described(path: Path, **change: Any) -> Path:
    content = {"labels": LABELS, "layout": "NCHW", "mean": MEAN, "deviation": DEVIATION, "gives": "logits"} | change
    path.with_suffix(".json").write_text(
        json.dumps({key: value for key, value in content.items() if value is not None})
    )
    return path


def saved(model: torch.nn.Module, path: Path, *, batch: bool = True, nhwc: bool = False, **change: Any) -> Path:
    """Export as people do, by the exporter's own function, and write the description."""
    example = torch.zeros((2, SIDE, SIDE, 3) if nhwc else (2, 3, SIDE, SIDE))
    shapes = ({0: torch.export.Dim("batch")},) if batch else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter uses what torch deprecates
        torch.onnx.export(
            model, (example,), path, dynamic_shapes=shapes, dynamo=True, verbose=False, external_data=False
        )
    return described(path, **change)


class Around(torch.nn.Module):
    """The network with other ends."""

    def __init__(self, inner: torch.nn.Module, *, nhwc: bool = False, bgr: bool = False, softmax: bool = False) -> None:
        super().__init__()
        self.inner, self.nhwc, self.bgr, self.softmax = inner, nhwc, bgr, softmax

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 3, 1, 2) if self.nhwc else x
        logits = self.inner(x.flip(1) if self.bgr else x)
        return logits.softmax(1) if self.softmax else logits


def configured(path: Path, **adopt: Any) -> ClassificationSettings:
    _, model = settings.model("classifier", Path(__file__).parents[1] / "params.yaml")
    changed = model.model_dump() | {"input": {"height": SIDE, "width": SIDE, "channels": 3}}
    return ClassificationSettings.model_validate(changed | {"train": {"adopt": str(path)} | adopt})


def adopt(path: Path, folder: Path, **options: Any) -> Path:
    out = folder / "train"
    splits = stripes(60, seed=0), stripes(45, seed=1)
    training.train(*splits, configured(path, **options), seed=0, out=out, work=folder / "work", log=lambda *_: None)
    return out


@pytest.mark.parametrize("ends", [{}, {"nhwc": True}, {"bgr": True}, {"softmax": True}], ids=str)
def test_it_answers_as_it_did_whatever_its_ends(trained, tmp_path, ends):
    change: dict[str, Any] = {"layout": "NHWC"} if ends.get("nhwc") else {}
    if ends.get("bgr"):
        change |= {"colours": "BGR", "mean": MEAN[::-1], "deviation": DEVIATION[::-1]}
    change |= {"gives": "probabilities"} if ends.get("softmax") else {}
    path = saved(Around(trained, **ends).eval(), tmp_path / "model.onnx", nhwc=ends.get("nhwc", False), **change)
    folder = adopt(path, tmp_path)
    split = stripes(30, seed=9)
    spec = training.export(folder, split, split, configured(path), out=tmp_path / "out.onnx")
    assert spec.labels == split.labels
    inputs = {"image": image.batch(split.inputs, spec.image)}
    answers = sessions.run(tmp_path / "out.onnx", inputs)
    parity.check(training.reference(folder)(inputs), answers, tolerance=1e-4, what="they")
    x = torch.from_numpy(
        ((inputs["image"] - np.array(MEAN)) / np.array(DEVIATION)).astype(np.float32).transpose(0, 3, 1, 2)
    )
    with torch.inference_mode():
        logits = trained(x)[:, [LABELS.index(label) for label in split.labels]]
    np.testing.assert_allclose(answers["probabilities"], (logits / spec.temperature).softmax(1).numpy(), atol=1e-4)
    assert (answers["probabilities"].argmax(1) == split.targets).mean() > 0.9
    assert answers["embedding"].shape == (30, 8)
    deviation = training.reference(folder)({"image": image.batch(stripes(60, seed=0).inputs, spec.image)})[
        "embedding"
    ].std(0)
    assert deviation[0] == pytest.approx(1, abs=0.01)


def test_its_int8_version_works(trained, tmp_path):
    path = saved(trained, tmp_path / "model.onnx")
    split = stripes(60, seed=0)
    spec = training.export(adopt(path, tmp_path), split, split, configured(path), out=tmp_path / "out.onnx")
    inputs = {"image": image.batch(split.inputs, spec.image)}
    exclude = training.nodes_to_exclude(onnx.load(tmp_path / "out.onnx"))
    candidate = quantization.Candidate("minmax", reduce_range=True)
    quantization.quantize(tmp_path / "out.onnx", tmp_path / "int8.onnx", candidate, inputs, exclude=exclude)
    full, small = (sessions.run(tmp_path / name, inputs) for name in ("out.onnx", "int8.onnx"))
    assert quantization.distance(full, small) < 0.05
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(tmp_path / "int8.onnx").graph.node)


def test_features_are_what_the_head_takes_and_else_the_output(trained, tmp_path):
    model = onnx.load(saved(trained, tmp_path / "model.onnx"))
    head = next(node for node in model.graph.node if node.op_type == "Gemm")
    assert onnx_model.features_of(model) == head.input[0]
    bare = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    model = onnx.load(saved(bare, tmp_path / "bare.onnx"))
    assert onnx_model.features_of(model) == model.graph.output[0].name


def test_what_it_takes_is_read_from_the_graph(trained, tmp_path):
    adoptable = training.adoptable(str(saved(trained, tmp_path / "model.onnx")))
    assert adoptable.input == {"height": SIDE, "width": SIDE, "channels": 3}


def tiny(
    path: Path,
    shape: list[Any] | None,
    *,
    operator: str = "Flatten",
    domain: str = "",
    kind: int = TensorProto.FLOAT,
    **change: Any,
) -> Path:
    """A graph of one operator with this input shape; None is an unknown rank."""
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    graph = helper.make_graph(
        [node],
        "tiny",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return described(path, **change)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (
            ["n", 3, SIDE, SIDE],
            {"operator": "Magic", "domain": "com.example"},
            r"outside of the ONNX standard: com\.example\.Magic",
        ),
        (None, {}, "takes 1 inputs, with 0 dimensions: one image input with four dimensions is needed"),
        (["n", 3, SIDE], {}, "with 3 dimensions"),
        (["n", 3, "h", "w"], {}, "takes images of any size: give height and width"),
        (["n", SIDE, SIDE, 3], {}, "takes 16 channels in the layout NCHW"),
        (["n", 3, SIDE, SIDE], {"labels": None}, r"model\.json: labels: Field required"),
        (["n", 3, SIDE, SIDE], {"labels": ["one"]}, "labels: Tuple should have at least 2 items"),
        (["n", 3, SIDE, SIDE], {"gives": "scores"}, "gives: Input should be 'logits' or 'probabilities'"),
        (["n", 3, SIDE, SIDE], {"deviation": [0, 0, 0]}, "deviation must be above 0"),
        (["n", 3, SIDE, SIDE], {"mean": [1, 2]}, "mean needs 1 or 3 finite numbers"),
        (["n", 3, SIDE, SIDE], {"mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]}, "multiply those"),
        (["n", 3, SIDE, SIDE], {"labels": ["one", "one"]}, "two labels are equal"),
        (["n", 3, SIDE, SIDE], {"kind": TensorProto.FLOAT16}, "in half precision"),
        (["n", 3, SIDE, SIDE], {"softmax": True}, "softmax: Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_adopted_is_refused_with_its_reason(tmp_path, shape, options, message):
    path = tiny(tmp_path / "model.onnx", shape, **options)
    with pytest.raises(LooplineError, match=message):
        onnx_file.finished(str(path))


def test_an_operator_that_no_runtime_has_is_refused(tmp_path):
    path = tiny(tmp_path / "model.onnx", ["n", 3, SIDE, SIDE], operator="Magic")
    with pytest.raises(LooplineError, match=r"ONNX Runtime cannot open .*model\.onnx: .*Magic"):
        adopt(path, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not onnx", "cannot be read as ONNX"), (b"\x08\x08", "holds no graph"), (None, "is no file that ends in .onnx")],
)
def test_what_is_no_graph_is_one_message(tmp_path, content, message):
    path = described(tmp_path / "model.onnx")
    if content:
        path.write_bytes(content)
    with pytest.raises(LooplineError, match=message):
        onnx_file.finished(str(path))


def test_without_a_description_the_message_says_what_it_holds(trained, tmp_path):
    path = saved(trained, tmp_path / "model.onnx")
    path.with_suffix(".json").unlink()
    with pytest.raises(
        LooplineError, match=r"there is no .*model\.json, which says what the graph takes and gives: labels, layout"
    ):
        onnx_file.finished(str(path))
    path.with_suffix(".json").write_text("{")
    with pytest.raises(LooplineError, match=r"model\.json is not JSON"):
        onnx_file.finished(str(path))


def test_weights_in_a_missing_file_are_named(trained, tmp_path):
    model = onnx.load(saved(trained, tmp_path / "whole.onnx"))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    described(tmp_path / "model.onnx")
    assert onnx_file.finished(str(tmp_path / "model.onnx"))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(LooplineError, match=r"model\.onnx.*weights\.bin"):
        onnx_file.finished(str(tmp_path / "model.onnx"))


class Averaging(torch.nn.Module):
    """A network in training mode, as it were: an answer depends on the other images of the batch."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x - x.mean(0, keepdim=True))


def test_an_answer_that_depends_on_the_batch_is_refused(trained, tmp_path):
    path = saved(Averaging(trained).eval(), tmp_path / "model.onnx")
    with pytest.raises(LooplineError, match="answers an image in a batch otherwise than alone"):
        adopt(path, tmp_path)


class Fixed(torch.nn.Module):
    """A network that was exported for two images: its Reshape holds their number."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.reshape(2, 3, SIDE, SIDE))


def test_a_graph_for_a_fixed_batch_is_refused(trained, tmp_path):
    path = saved(Fixed(trained).eval(), tmp_path / "model.onnx", batch=False)
    model = onnx.load(path)
    first = model.graph.node[0]
    if first.op_type != "Reshape":  # the exporter may drop it
        shape = helper.make_tensor("two", TensorProto.INT64, [4], [2, 3, SIDE, SIDE])
        model.graph.initializer.append(shape)
        taken = model.graph.input[0].name
        for node in model.graph.node:
            node.input[:] = ["reshaped" if name == taken else name for name in node.input]
        model.graph.node.insert(0, helper.make_node("Reshape", [taken, "two"], ["reshaped"]))
        onnx.save(model, path)
    with pytest.raises(LooplineError, match=r"does not run on a batch of images.*export it with a dynamic batch"):
        adopt(path, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": ["down", "across", "ring"]},
            "has the classes down, across, ring, the data have across, blank, down",
        ),
        ({"labels": [*LABELS, "ring"]}, "has the classes"),
        ({"gives": "probabilities"}, "gives no probabilities"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(trained, tmp_path, change, message):
    path = saved(trained, tmp_path / "model.onnx", **change)
    with pytest.raises(LooplineError, match=message):
        adopt(path, tmp_path)


def test_a_softmax_that_is_described_as_logits_is_refused(trained, tmp_path):
    path = saved(Around(trained, softmax=True).eval(), tmp_path / "model.onnx")
    with pytest.raises(LooplineError, match="gives probabilities, they sum to 1: set gives to probabilities"):
        adopt(path, tmp_path)


@pytest.mark.parametrize("place", ["weights.bin", "parts/weights.bin"])
def test_the_hash_covers_the_weights_file_and_the_description(trained, tmp_path, place):
    model = onnx.load(saved(trained, tmp_path / "whole.onnx"))
    (tmp_path / "parts").mkdir()
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location=place, size_threshold=0)
    described(tmp_path / "model.onnx")
    digests = {training.adoptable(str(tmp_path / "model.onnx")).weights_sha256}
    weights = bytearray((tmp_path / place).read_bytes())
    weights[0] ^= 1
    (tmp_path / place).write_bytes(weights)
    digests.add(training.adoptable(str(tmp_path / "model.onnx")).weights_sha256)
    described(tmp_path / "model.onnx", mean=[1.0, 2.0, 3.0])
    digests.add(training.adoptable(str(tmp_path / "model.onnx")).weights_sha256)
    assert len(digests) == 3


def test_names_of_a_graph_that_clash_with_those_of_loopline_do_not_matter(trained, tmp_path):
    model = onnx.load(saved(trained, tmp_path / "model.onnx"))
    renamed = {model.graph.input[0].name: "image", model.graph.output[0].name: "probabilities"}
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    model.graph.input[0].name, model.graph.output[0].name = "image", "probabilities"
    onnx.save(model, tmp_path / "model.onnx")
    split = stripes(30, seed=9)
    path = tmp_path / "model.onnx"
    spec = training.export(adopt(path, tmp_path), split, split, configured(path), out=tmp_path / "out.onnx")
    answers = sessions.run(tmp_path / "out.onnx", {"image": image.batch(split.inputs, spec.image)})
    assert (answers["probabilities"].argmax(1) == split.targets).mean() > 0.9


def test_what_lies_behind_the_last_convolution_is_never_quantized(trained, tmp_path):
    path = saved(trained, tmp_path / "model.onnx")
    split = stripes(30, seed=9)
    training.export(adopt(path, tmp_path), split, split, configured(path), out=tmp_path / "out.onnx")
    model = onnx.load(tmp_path / "out.onnx")
    excluded = set(training.nodes_to_exclude(model))
    last = max(
        number for number, node in enumerate(model.graph.node) if node.op_type in ("GlobalAveragePool", "ReduceMean")
    )
    behind = list(model.graph.node[last + 1 :])
    assert {"Add", "Softmax"} <= {node.op_type for node in behind}
    assert all(node.name in excluded for node in behind)


def test_another_hash_and_another_size_are_refused(trained, tmp_path):
    path = saved(trained, tmp_path / "model.onnx")
    with pytest.raises(LooplineError, match=r"its weights or its description changed.*but train\.weights_sha256 is 00"):
        adopt(path, tmp_path, weights_sha256="00")
    model = configured(path)
    other = model.model_copy(update={"input": model.input.model_copy(update={"height": 2 * SIDE})})
    splits = stripes(60, seed=0), stripes(45, seed=1)
    with pytest.raises(
        LooplineError, match=r"takes images of 16x16 with 3 channels, but input in params\.yaml says 16x32 with 3"
    ):
        training.train(*splits, other, seed=0, out=tmp_path / "o", work=tmp_path / "w", log=lambda *_: None)


def test_an_old_opset_is_converted(trained, tmp_path):
    """The older exporter, which many tools still use, writes opset 11 and may list weights as inputs."""
    path = tmp_path / "model.onnx"
    with pytest.warns(DeprecationWarning):
        torch.onnx.export(
            trained,
            (torch.zeros(1, 3, SIDE, SIDE),),
            path,
            dynamo=False,
            opset_version=11,
            keep_initializers_as_inputs=True,
        )
    folder = adopt(described(path), tmp_path)
    split = stripes(30, seed=9)
    spec = training.export(folder, split, split, configured(path), out=tmp_path / "out.onnx")
    answers = sessions.run(tmp_path / "out.onnx", {"image": image.batch(split.inputs, spec.image)})
    assert (answers["probabilities"].argmax(1) == split.targets).mean() > 0.9
