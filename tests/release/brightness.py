"""Small real parts: ONNX models that separate bright images from dark ones by a threshold, a manifest, settings."""

import io
from pathlib import Path

import numpy as np
import yaml
from onnx import TensorProto, helper, numpy_helper, save
from PIL import Image

from loopline import tasks
from loopline.data import manifest
from loopline.drift import reference as drift
from loopline.release import bundle
from loopline.tasks import signals
from loopline.tasks.spec import ImageInput, ModelSpec

LABELS = ("bright", "dark")
ROOT = Path(__file__).parents[2]


def params(**changes):
    """params.yaml of the tests with one model, which has a low floor. changes: settings of that model."""
    content = yaml.safe_load((ROOT / "tests/params.yaml").read_text(encoding="utf-8"))
    model = content["models"]["classifier"] | {
        "evaluate": {"floors": {"accuracy": 0.6}, "must_beat_simple": True, "resamples": 200}
    }
    # Such short runs cannot be timed reliably.
    promotion = content["promotion"] | {"min_gain": 0.0, "max_latency_ratio": 20}
    return yaml.safe_dump({"seed": 0, "models": {"classifier": model | changes}, "promotion": promotion})


def onnx_model(path, threshold, *, labels=2, padding=0):
    """Write a model from `image`, uint8 (n, 8, 8, 1), to `probabilities`: bright above the threshold (0 to 255), else dark."""
    # Each logit is brightness * slope + offset: it rises for bright, falls for dark, and is far lower for other labels.
    slope = np.array([[1.0, -1.0, *[0.0] * (labels - 2)]], np.float32) / 8
    offset = np.array([-threshold, threshold, *[-1e4] * (labels - 2)], np.float32) / 8
    constants = [
        numpy_helper.from_array(slope, "slope"),
        numpy_helper.from_array(offset, "offset"),
        numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
        numpy_helper.from_array(np.array([-1, 1], np.int64), "column"),
    ]
    if padding:
        constants.append(numpy_helper.from_array(np.zeros(padding, np.float32), "padding"))
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "column"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "slope"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    values = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "brightness",
        [values("image", TensorProto.UINT8, ["n", 8, 8, 1])],
        [values("probabilities", TensorProto.FLOAT, ["n", labels]), values("embedding", TensorProto.FLOAT, ["n", 1])],
        constants,
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def described(*, name="classifier", labels=LABELS, data="a" * 64, parameters="b" * 64, code="c" * 64):
    """The content of `bundle.json` for these models."""
    return bundle.Manifest(
        name=name,
        spec=ModelSpec(task="classification", labels=labels, image=ImageInput(height=8, width=8, channels=1)),
        inputs=(bundle.Tensor(name="image", datatype="UINT8", shape=(-1, 8, 8, 1)),),
        outputs=(
            bundle.Tensor(name="probabilities", datatype="FP32", shape=(-1, len(labels))),
            bundle.Tensor(name="embedding", datatype="FP32", shape=(-1, 1)),
        ),
        quantization="fp32",
        metrics={"headline": "accuracy", "n": 2, "metrics": {"accuracy": {"value": 1.0, "low": 1.0, "high": 1.0}}},
        lineage=bundle.Lineage(data=data, parameters=parameters, code=code),
    )


def reference(spec):
    """The content of a `drift.json`: uniform brightness from 0 to 255, equal classes, full confidence, an alarm at 4 sd."""
    sure = tasks.find(spec.task).confidence
    edges = {
        "brightness": (0.0, 64.0, 128.0, 192.0, 256.0),
        signals.CLASS: tuple(map(float, drift.class_edges(len(spec.labels)))),
        sure: (0.5, 0.9),
    }
    counts = {"brightness": (0, 50, 50, 50, 50, 0, 0), sure: (0, 0, 200, 0)}
    counts[signals.CLASS] = (*[200 // len(spec.labels)] * len(spec.labels), 0)
    if spec.text:
        edges["characters"], counts["characters"] = (5.0, 10.0), (50, 100, 50, 0)
        del edges["brightness"]
    return drift.Reference(
        samples=200,
        least=50,
        threshold=(4.0, 0.0, 0.0),
        promise={"false_alarms": 0.05, "windows": 24.0},
        signals={name: drift.Signal(edges=edge, counts=counts[name], mean=1.6, sd=0.4) for name, edge in edges.items()},
        quality=drift.Quality(
            metric="accuracy", value=0.9, max_loss=0.05, signal=sure, weights={"confidence": (0.3, 0.6, 0.9, 0.0)}
        ),
        labels=drift.ReferenceLabels(names=spec.labels),
    ).to_dict()


def png(value, side=8):
    content = io.BytesIO()
    Image.new("L", (side, side), value).save(content, "PNG")
    return content.getvalue()


def write_manifest(path, *, labels=LABELS, labelled=lambda value: "bright" if value > 127 else "dark", split="test"):
    """Write a manifest with one sample for each brightness from 0 to 255."""
    samples = [
        manifest.Sample(
            id=f"{v:064x}", source="s", path=f"{v}.png", split=split, label=labelled(v), image=png(v), width=8, height=8
        )
        for v in range(256)
    ]
    manifest.write(path, samples, task="classification", labels=labels)
