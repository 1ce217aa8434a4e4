"""A finished ONNX graph as an image classifier: Loopline's contract is built around it, in operators of the ONNX standard."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loopline.errors import LooplineError
from loopline.lib import files, sessions
from loopline.lib.arrays import Arrays
from loopline.tasks import image
from loopline.tasks.classification.onnx_file import Description, finished
from loopline.tasks.spec import ImageInput, ModelSpec
from loopline.training import onnx_export, posthoc

if TYPE_CHECKING:
    import onnx

    from loopline.data.manifest import Split
    from loopline.settings import Adopt
    from loopline.tasks.classification.parameters import ClassificationSettings

ADOPTED = "adopted.onnx"
LEAST_PROBABILITY = 1e-12
SAME = 1e-4  # largest difference between the logits of an image alone and in a batch, as a share of the largest
PASSED = ("Softmax", "LogSoftmax", "Add", "Identity", "Flatten", "Squeeze", "Cast")  # between the head and the output
BATCH = 32
SUMS = 0.01  # a sum of probabilities differs from 1 by less


def features_of(model: onnx.ModelProto) -> str:
    """The value that the last matrix product takes, which stands for the image in the drift signals; else the output itself."""
    makers = {output: node for node in model.graph.node for output in node.output}
    name = model.graph.output[0].name
    while (node := makers.get(name)) and node.op_type in PASSED:
        name = next((each for each in node.input if each in makers), "")
    return str(node.input[0]) if node is not None and node.op_type in ("Gemm", "MatMul") else model.graph.output[0].name


def prepared_pixels(pixels: NDArray[np.uint8], description: Description, kind: Any) -> NDArray[Any]:
    """What the graph takes, made from pixels (n, h, w, c): the definition that the exported graph is compared with."""
    x: NDArray[np.float32] = (pixels[..., ::-1] if description.colours == "BGR" else pixels).astype(np.float32)
    x = ((x - np.array(description.mean)) / np.array(description.deviation)).astype(np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2) if description.layout == "NCHW" else x).astype(kind)


class AdoptedGraph:
    """The graph as it was, in ONNX Runtime: from pixels (n, h, w, c) to logits (n, classes) and features (n, width)."""

    def __init__(self, model: onnx.ModelProto, description: Description) -> None:
        import onnx

        self.description, self.kind = description, _kind(model)
        self.output, self.features = model.graph.output[0].name, features_of(model)
        shown = onnx.ModelProto()
        shown.CopyFrom(model)
        if self.features != self.output:
            shown.graph.output.append(onnx.helper.make_empty_tensor_value_info(self.features))
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            onnx.save(shown, file.name)
            self.session = sessions.session(Path(file.name))

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits and features."""
        parts = [self._batch(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _batch(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        taken = {self.session.get_inputs()[0].name: prepared_pixels(pixels, self.description, self.kind)}
        outputs = [self.output] if self.features == self.output else [self.output, self.features]
        answers = [np.asarray(each, np.float32) for each in self.session.run(outputs, taken)]
        logits, features = answers[0].reshape(len(pixels), -1), answers[-1].reshape(len(pixels), -1)
        if self.description.gives == "probabilities":
            logits = np.log(np.clip(logits, LEAST_PROBABILITY, None))
        return logits, features


def _kind(model: onnx.ModelProto) -> Any:
    from onnx import helper

    return helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)


@dataclass(frozen=True)
class Fitted:
    """What is fitted around the graph. order: places of the classes in its output. weight (d, width), bias (d,): of the embedding."""

    temperature: float
    order: list[int]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def adopt(
    train: Split, val: Split, settings: ClassificationSettings, options: Adopt, *, out: Path, first: int
) -> dict[str, float]:
    """Write `adopted.onnx`, `model.safetensors` (temperature and embedding), `config.json` and `history.csv` to `out`.

    first: training images for the embedding. Returns val_loss and val_accuracy. Raises LooplineError if the graph cannot be used, has
    other classes than the data, or answers an image in a batch otherwise than alone.
    """
    import onnx
    import torch
    from safetensors.numpy import save

    model, description, shape, digest = finished(options.adopt, options.weights_sha256)
    if sorted(description.labels) != sorted(train.labels):
        raise LooplineError(
            f"adopt: {options.adopt} has the classes {', '.join(description.labels[:10])}, the data have "
            f"{', '.join(train.labels[:10])}: give both the same names"
        )
    given = settings.input
    if (given.height, given.width, given.channels) != (shape.height, shape.width, shape.channels):
        raise LooplineError(
            f"adopt: {options.adopt} takes images of {shape.width}x{shape.height} with {shape.channels} channels, but input in "
            f"params.yaml says {given.width}x{given.height} with {given.channels}"
        )
    order = [description.labels.index(label) for label in train.labels]
    run = _checked(model, description, shape, val, options.adopt)
    logits = torch.from_numpy(run(_pixels(val, shape))[0][:, order])
    targets = torch.from_numpy(np.asarray(val.targets, np.int64))
    temperature = posthoc.temperature(logits, targets)
    features = run(_pixels(train, shape, first))[1]
    weight, bias = posthoc.principal_components(torch.from_numpy(features), settings.export.embedding)
    row = {
        "val_loss": float(torch.nn.functional.cross_entropy(logits, targets)),
        "val_accuracy": float((logits.argmax(1) == targets).double().mean()),
    }
    config = {
        "architecture": "onnx",
        "image": vars(shape),
        "labels": list(train.labels),
        "order": order,
        "description": description.model_dump(),
        "weights_sha256": digest,
    }
    fitted = {"temperature": np.float32(temperature).reshape(1), "weight": weight.numpy(), "bias": bias.numpy()}
    with files.replacing(out / ADOPTED) as partial:
        onnx.save(model, partial)
    files.write(out / "model.safetensors", save(fitted))
    files.write(out / "history.csv", f"epoch,{','.join(row)}\n1,{','.join(f'{value:.6g}' for value in row.values())}\n")
    files.write(out / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    return row


def _pixels(split: Split, shape: ImageInput, first: int | None = None) -> NDArray[np.uint8]:
    return image.batch([item for item in split.inputs[:first] if isinstance(item, bytes)], shape)


def _checked(
    model: onnx.ModelProto, description: Description, shape: ImageInput, val: Split, name: str
) -> AdoptedGraph:
    """The graph, ready to run. Raises LooplineError if it has another number of classes, or does not take a batch."""
    try:
        run = AdoptedGraph(model, description)
    except LooplineError as error:  # it names a temporary file
        raise LooplineError(f"adopt: ONNX Runtime cannot open {name}: {str(error).rpartition('failed:')[2]}") from error
    pixels = _pixels(val, shape, 3)
    try:
        together, alone = run(pixels)[0], np.concatenate([run(pixels[row : row + 1])[0] for row in range(len(pixels))])
    except Exception as error:  # ONNX Runtime raises kinds of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise LooplineError(
            f"adopt: {name} does not run on a batch of images ({reason}). If it was exported for one image, export it with a "
            "dynamic batch"
        ) from error
    if together.shape[1] != len(description.labels):
        raise LooplineError(
            f"adopt: {name} gives {together.shape[1]} values for an image, its description has {len(description.labels)} labels"
        )
    if not np.abs(together - alone).max() <= SAME * max(1.0, float(np.abs(alone).max())):
        raise LooplineError(
            f"adopt: {name} answers an image in a batch otherwise than alone: export it in evaluation mode"
        )
    if description.gives == "logits" and together.min() >= 0 and np.abs(together.sum(1) - 1).max() < SUMS:
        raise LooplineError(
            f"adopt: {name} gives probabilities, they sum to 1: set gives to probabilities in its description"
        )
    if description.gives == "probabilities" and not np.abs(np.exp(together).sum(1) - 1).max() <= SUMS:
        raise LooplineError(
            f"adopt: {name} gives no probabilities, they do not sum to 1: set gives to logits in its description"
        )
    return run


def _load(folder: Path) -> tuple[onnx.ModelProto, Description, Fitted, ModelSpec]:
    import onnx
    from safetensors.numpy import load

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = load((folder / "model.safetensors").read_bytes())
    fitted = Fitted(float(tensors["temperature"][0]), config["order"], tensors["weight"], tensors["bias"])
    spec = ModelSpec(
        task="classification",
        labels=tuple(config["labels"]),
        image=ImageInput(**config["image"]),
        temperature=fitted.temperature,
    )
    return onnx.load(folder / ADOPTED), Description.model_validate(config["description"]), fitted, spec


def reference(folder: Path) -> Callable[[Arrays], Arrays]:
    """Return the original graph in ONNX Runtime, with everything around it in numpy: see `training.reference`."""
    model, description, fitted, _ = _load(folder)
    run = AdoptedGraph(model, description)

    def answer(inputs: Arrays) -> Arrays:
        logits, features = run(inputs["image"])
        scaled = logits[:, fitted.order] / np.float32(fitted.temperature)
        exponents = np.exp(scaled - scaled.max(1, keepdims=True))
        embedding = features @ fitted.weight.T + fitted.bias
        return {"probabilities": exponents / exponents.sum(1, keepdims=True), "embedding": embedding}

    return answer


def export(folder: Path, *, out: Path) -> ModelSpec:
    """Write the graph with Loopline's input and outputs around it, and return its specification."""
    model, description, fitted, spec = _load(folder)
    assert spec.image is not None
    onnx_export.save(wrapped(model, description, fitted, spec.image), out)
    return spec


def wrapped(model: onnx.ModelProto, description: Description, fitted: Fitted, shape: ImageInput) -> onnx.ModelProto:
    """The graph from `image` uint8 (n, h, w, c) to `probabilities` and `embedding`, with the original in the middle."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    features, taken, given = features_of(model), graph.input[0].name, graph.output[0].name
    kind = graph.input[0].type.tensor_type.elem_type
    nodes: list[Any] = []

    def constant(name: str, value: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"loopline_{name}"))
        return f"loopline_{name}"

    def add(operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        name = output or f"loopline_{len(nodes)}_{operator.lower()}"
        nodes.append(helper.make_node(operator, inputs, [name], name=f"loopline_{len(nodes)}", **attributes))
        return name

    x = "image"
    if description.colours == "BGR":
        x = add("Gather", [x, constant("colours", np.array([2, 1, 0]))], axis=3)
    x = add("Cast", [x], to=TensorProto.FLOAT)
    x = add("Sub", [x, constant("mean", np.array(description.mean, np.float32))])
    x = add("Div", [x, constant("deviation", np.array(description.deviation, np.float32))])
    if description.layout == "NCHW":
        x = add("Transpose", [x], perm=[0, 3, 1, 2])
    add("Cast", [x], taken, to=kind)
    before = len(nodes)
    flat = [add("Flatten", [add("Cast", [name], to=TensorProto.FLOAT)]) for name in (given, features)]
    x = flat[0]
    if description.gives == "probabilities":
        x = add("Log", [add("Clip", [x, constant("least", np.float32(LEAST_PROBABILITY))])])
    x = add("Gather", [x, constant("order", np.array(fitted.order))], axis=1)
    x = add("Div", [x, constant("temperature", np.float32(fitted.temperature))])
    add("Softmax", [x], "probabilities", axis=1)
    x = add("MatMul", [flat[1], constant("weight", np.ascontiguousarray(fitted.weight.T))])
    add("Add", [x, constant("bias", fitted.bias)], "embedding")
    kept = list(graph.node)
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend([*nodes[:before], *kept, *nodes[before:]])
    size = ["n", shape.height, shape.width, shape.channels]
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, size))
    for name, width in (("probabilities", len(fitted.order)), ("embedding", len(fitted.bias))):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]))
    return model
