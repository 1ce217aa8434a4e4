"""Three bundles of tiny real models: a classifier of brightness, a detector of one bright spot, a text model that counts words."""

import io
import json
import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, load, numpy_helper, save
from PIL import Image

from loopline.drift import golden
from loopline.release import bundle
from loopline.tasks.spec import ImageInput, ModelSpec, TextInput
from loopline.tasks.text import tokenizing

sys.path.insert(0, str(Path(__file__).parents[1] / "release"))
import brightness

TEXTS = ["good fine", "bad poor", "good great", "bad awful"]
WORDS = 50


def classifier(folder, threshold=127.5, **options):
    """A classifier of `image`, uint8 (n, 8, 8, 1): bright above the threshold, else dark."""
    model = brightness.onnx_model(folder.with_suffix(".onnx"), threshold)
    return _write(folder, brightness.described(**options), model, golden=_golden(folder))


def slow(folder, *, side=512, products=4):
    """The classifier of brightness, slowed down by unused products of matrices of `side` for every sample."""
    model = load(brightness.onnx_model(folder.with_suffix(".onnx"), 127.5))
    weights = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32) / side**0.5
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([-1, 1, 1], np.int64), "cube"),
            numpy_helper.from_array(np.array([1, 2], np.int64), "faces"),
            numpy_helper.from_array(np.array(0, np.float32), "none"),
        ]
    )
    extra = [
        helper.make_node("Reshape", ["mean", "cube"], ["start"]),
        helper.make_node("Mul", ["start", "weights"], ["work_0"]),
    ]
    extra += [helper.make_node("MatMul", [f"work_{n}", "weights"], [f"work_{n + 1}"]) for n in range(products)]
    extra += [
        helper.make_node("ReduceMean", [f"work_{products}", "faces"], ["rest"], keepdims=0),
        helper.make_node("Mul", ["rest", "none"], ["nothing"]),
        helper.make_node("Reshape", ["nothing", "column"], ["column_of_nothing"]),
    ]
    softmax = model.graph.node[-1]
    extra.append(helper.make_node("Add", [softmax.input[0], "column_of_nothing"], ["slow_logits"]))
    softmax.input[0] = "slow_logits"
    nodes = [*model.graph.node[:-1], *extra, softmax]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    save(model, folder.with_suffix(".onnx"))
    return _write(folder, brightness.described(name="slow"), folder.with_suffix(".onnx"))


def text(folder, rows=WORDS):
    """A text model of `ids`, int64 (n, l): `good` or `bad` by the words' sum. It fails on ids from `rows` on (poison)."""
    tokenizer = tokenizing.learn(TEXTS, "words", vocabulary=WORDS, max_tokens=16)
    table = np.zeros((WORDS, 2), np.float32)
    for word, number in tokenizer.get_vocab().items():
        table[number] = {True: (1, -1), False: (-1, 1)}[word in "good fine great"] if number > tokenizing.EDGE else 0
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["said"]),
        helper.make_node("ReduceSum", ["said", "length"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("Identity", ["logits"], ["embedding"]),
    ]
    constants = [
        numpy_helper.from_array(table[:rows], "table"),
        numpy_helper.from_array(np.array([1], np.int64), "length"),
    ]
    gives = {"probabilities": (TensorProto.FLOAT, ["n", 2]), "embedding": (TensorProto.FLOAT, ["n", 2])}
    model = _save(folder, nodes, constants, {"ids": (TensorProto.INT64, ["n", "l"])}, gives)
    tokenizer.save(str(folder.with_suffix(".json")))
    spec = ModelSpec(task="text", labels=("good", "bad"), text=TextInput(max_tokens=16))
    takes = (bundle.Tensor(name="ids", datatype="INT64", shape=(-1, -1)),)
    outs = tuple(bundle.Tensor(name=name, datatype="FP32", shape=(-1, 2)) for name in gives)
    return _write(
        folder,
        _described("text", spec, takes, outs),
        model,
        tokenizer=folder.with_suffix(".json"),
        golden=_golden_texts(folder),
    )


def detector(folder):
    """A detector of `image`, uint8 (n, 32, 32, 3): a box at 4, 4, 20, 20 whose score is the brightness."""
    constants = [
        numpy_helper.from_array(np.array([1, 2, 3], np.int64), "sides"),
        numpy_helper.from_array(np.array([-1, 1], np.int64), "column"),
        numpy_helper.from_array(np.array(255, np.float32), "full"),
        numpy_helper.from_array(np.array([[1, 0]], np.float32), "first"),
        numpy_helper.from_array(np.zeros((1, 2), np.float32), "nothing"),
        numpy_helper.from_array(np.array([[[4, 4, 20, 20], [0, 0, 1, 1]]], np.float32), "corners"),
        numpy_helper.from_array(np.array([[1, 0]], np.int64), "kinds"),
        numpy_helper.from_array(np.array([2], np.int64), "last"),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "sides"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "full"], ["bright"]),
        helper.make_node("Reshape", ["bright", "column"], ["embedding"]),
        helper.make_node("Mul", ["embedding", "first"], ["scores"]),
        helper.make_node("Mul", ["scores", "nothing"], ["zeros"]),
        helper.make_node("Cast", ["zeros"], ["none"], to=TensorProto.INT64),
        helper.make_node("Add", ["none", "kinds"], ["classes"]),
        helper.make_node("Unsqueeze", ["zeros", "last"], ["wide"]),
        helper.make_node("Add", ["wide", "corners"], ["boxes"]),
    ]
    gives = {
        "boxes": (TensorProto.FLOAT, ["n", 2, 4]),
        "scores": (TensorProto.FLOAT, ["n", 2]),
        "classes": (TensorProto.INT64, ["n", 2]),
        "embedding": (TensorProto.FLOAT, ["n", 1]),
    }
    model = _save(folder, nodes, constants, {"image": (TensorProto.UINT8, ["n", 32, 32, 3])}, gives)
    shape = ImageInput(height=32, width=32, channels=3, fit="letterbox")
    spec = ModelSpec(task="detection", labels=("dim", "spot"), image=shape, score_threshold=0.5)
    takes = (bundle.Tensor(name="image", datatype="UINT8", shape=(-1, 32, 32, 3)),)
    kinds = {TensorProto.FLOAT: "FP32", TensorProto.INT64: "INT64"}
    outs = tuple(bundle.Tensor(name=n, datatype=kinds[k], shape=(-1, *shape[1:])) for n, (k, shape) in gives.items())
    return _write(folder, _described("detector", spec, takes, outs), model, golden=_golden_scenes(folder))


def _save(folder, nodes, constants, takes, gives):
    values = helper.make_tensor_value_info
    ins, outs = ([values(name, kind, shape) for name, (kind, shape) in side.items()] for side in (takes, gives))
    model = helper.make_model(
        helper.make_graph(nodes, "tiny", ins, outs, constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    save(model, folder.with_suffix(".onnx"))
    return folder.with_suffix(".onnx")


def _described(name, spec, inputs, outputs):
    return bundle.Manifest(
        name=name,
        spec=spec,
        inputs=inputs,
        outputs=outputs,
        quantization="fp32",
        metrics={"headline": "accuracy", "n": 2, "metrics": {"accuracy": {"value": 1.0, "low": 1.0, "high": 1.0}}},
        lineage=bundle.Lineage(data="a" * 64, parameters="b" * 64, code="c" * 64),
    )


def _write(folder, described, model, **more):
    drift = folder.with_suffix(".drift")
    drift.write_text(json.dumps(brightness.reference(described.spec)))
    return bundle.write(folder, described, model=model, drift=drift, card="# tiny\n", **more)


def _golden(folder):
    """Two images with the answers of the classifier of brightness."""
    rows = []
    for value, label in ((20, "dark"), (230, "bright")):
        sure = {name: float(name == label) for name in ("bright", "dark")}
        ranked = dict(sorted(sure.items(), key=lambda item: -item[1]))
        rows.append(
            golden.GoldenSample(brightness.png(value), {"label": label, "probability": 1.0, "probabilities": ranked})
        )
    return _write_golden(folder, rows)


def _golden_texts(folder):
    """Two texts of two words each, with the answers of the text model."""
    sure = float(1 / (1 + np.exp(-4)))
    rows = []
    for texts, label, other in (("good fine", "good", "bad"), ("bad awful", "bad", "good")):
        probabilities = {label: sure, other: 1 - sure}
        rows.append(golden.GoldenSample(texts, {"label": label, "probability": sure, "probabilities": probabilities}))
    return _write_golden(folder, rows)


def _golden_scenes(folder):
    """A white image with the answer of the detector."""
    content = io.BytesIO()
    Image.new("RGB", (32, 32), "white").save(content, "PNG")
    box = {"label": "spot", "score": 1.0, "x1": 4.0, "y1": 4.0, "x2": 20.0, "y2": 20.0}
    return _write_golden(folder, [golden.GoldenSample(content.getvalue(), {"boxes": [box]})])


def _write_golden(folder, rows):
    path = folder.with_suffix(".golden")
    path.write_text(json.dumps(golden.to_dict(rows)))
    return path


def failing(folder):
    """The classifier of brightness, but its graph fails on images brighter than 100."""
    model = load(brightness.onnx_model(folder.with_suffix(".onnx"), 127.5))
    constants = {"hundred": np.array(100, np.float32), "one_row": np.zeros((1, 1), np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    softmax = model.graph.node[-1]
    extra = [
        helper.make_node("Div", ["mean", "hundred"], ["hundreds"]),
        helper.make_node("Cast", ["hundreds"], ["row"], to=TensorProto.INT64),
        helper.make_node("Gather", ["one_row", "row"], ["looked_up"]),
        helper.make_node("Reshape", ["looked_up", "column"], ["column_of_zeros"]),
        helper.make_node("Add", [softmax.input[0], "column_of_zeros"], ["checked_logits"]),
    ]
    softmax.input[0] = "checked_logits"
    nodes = [*model.graph.node[:-1], *extra, softmax]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    save(model, folder.with_suffix(".onnx"))
    return _write(folder, brightness.described(), folder.with_suffix(".onnx"), golden=_golden(folder))
