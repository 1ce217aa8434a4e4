"""A ridge regression in closed form, and its graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from loopline.lib import files
from loopline.lib.arrays import Arrays
from loopline.tasks import image
from loopline.tasks.spec import ImageInput, ModelSpec

QUANTIZATION: Literal["static", "dynamic"] = "dynamic"


def train(
    train, val, settings, *, seed: int, out: Path, work: Path, log: Callable[[int, dict[str, float]], None]
) -> None:
    """One epoch: the normal equations."""
    shape = ImageInput(**settings.input.model_dump())
    pixels = image.batch(train.inputs, shape).reshape(len(train.ids), -1) / 255
    rows = np.concatenate([pixels, np.ones((len(pixels), 1))], 1)
    weights = np.linalg.solve(rows.T @ rows + settings.train.ridge * np.eye(rows.shape[1]), rows.T @ train.targets)
    loss = float(np.mean((rows @ weights - train.targets) ** 2))
    log(1, {"train_loss": loss, "val_loss": loss})
    files.write(out / "model.safetensors", weights.astype(np.float32).tobytes())
    config = {"image": vars(shape), "embedding": settings.export.embedding}
    files.write(out / "config.json", json.dumps(config))
    files.write(out / "history.csv", f"epoch,train_loss,val_loss\n1,{loss:.6g},{loss:.6g}\n")


def _load(folder: Path) -> tuple[Any, np.ndarray, ModelSpec]:
    config = json.loads((folder / "config.json").read_text())
    weights = np.frombuffer((folder / "model.safetensors").read_bytes(), np.float32)
    return config, weights, ModelSpec(task="number", labels=(), image=ImageInput(**config["image"]))


def reference(folder: Path) -> Callable[[Arrays], Arrays]:
    """The regression in numpy."""
    config, weights, _ = _load(folder)

    def run(inputs: Arrays) -> Arrays:
        pixels = inputs["image"].reshape(len(inputs["image"]), -1).astype(np.float32) / np.float32(255)
        return {"value": pixels @ weights[:-1] + weights[-1], "embedding": pixels[:, : config["embedding"]]}

    return run


def export(folder: Path, train, val, settings, *, out: Path) -> ModelSpec:
    """Scale, flatten, multiply, add."""
    config, weights, spec = _load(folder)
    sides = [spec.image.height, spec.image.width, spec.image.channels]
    constants = {
        "scale": np.float32(255),
        "weights": weights[:-1, None],
        "bias": weights[-1:],
        "row": np.array([-1]),
        "start": np.array([0]),
        "end": np.array([config["embedding"]]),
        "axis": np.array([1]),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "scale"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["pixels"]),
        helper.make_node("MatMul", ["pixels", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Reshape", ["sum", "row"], ["value"]),
        helper.make_node("Slice", ["pixels", "start", "end", "axis"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "number",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", *sides])],
        [
            helper.make_tensor_value_info("value", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", config["embedding"]]),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    files.write(out, model.SerializeToString())
    return spec


def nodes_to_exclude(model: Any) -> list[str]:
    """None."""
    return []
