"""The detector: YOLO from its YAML, from a manifest's splits to `model.onnx` with suppression in the graph.

Writes `model.safetensors` (weights and embedding), `config.json` (layers, labels, thresholds) and `history.csv` to the train folder,
and the ONNX graph to the export folder. Run by the stages `train` and `export`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loopline.errors import LooplineError
from loopline.lib.arrays import Arrays
from loopline.settings import Adopt
from loopline.tasks import image
from loopline.tasks.base import Adoptable
from loopline.tasks.detection import fit, suppression, task
from loopline.tasks.spec import ImageInput, ModelSpec
from loopline.training import checkpoint, loop, onnx_export, posthoc

if TYPE_CHECKING:
    import onnx

    from loopline.data.manifest import Split
    from loopline.tasks.detection.mosaic import Scenes
    from loopline.tasks.detection.parameters import DetectionSettings, DetectionTrain
    from loopline.tasks.detection.yolo_network import Detector

QUANTIZATION: Literal["static", "dynamic"] = "static"
QUANTIZED = {"Conv", "Relu", "Concat", "Add", "MaxPool", "Resize", "Split"}
EMBEDDING_SAMPLES = 1024
# Of boxes in pixels, and as params.yaml has them for the detector
ADOPTED_LIMITS: dict[str, dict[str, Any]] = {
    "export": {"tolerance": 0.001},
    "quantize": {"calibration_samples": 64, "tolerance": 0.05},
    "evaluate": {"resamples": 200},
}
NMS_IOUS = (0.6, 0.55, 0.65, 0.5, 0.7, 0.45, 0.4, 0.35, 0.3)  # the first of equally good ones is taken


def train(
    train: Split,
    val: Split,
    settings: DetectionSettings,
    *,
    seed: int,
    out: Path,
    work: Path,
    log: Callable[[int, dict[str, float]], None],
    taught: Path | None = None,
) -> None:
    """Train on `train`; choose the epoch, the overlap for suppression and the score threshold on `val`; write the files above.

    taught: train folder of the teacher. Resumes from a checkpoint in `work` of the same settings, data and seed. Raises LooplineError
    on an architecture that is unknown or does not fit the image's size, on a bad `pretrained`, and on a teacher that does not fit.
    """
    import torch

    from loopline.tasks.detection import yolo_network

    if not val.ids:
        raise LooplineError(
            "the validation split is empty: set split.val above 0, because epoch and thresholds are chosen on it"
        )
    shape = ImageInput(**settings.input.model_dump(), fit="letterbox")
    labels, recipe = train.labels, settings.train
    loop.reproducible(seed)
    # The loss scatters, which CUDA cannot do deterministically
    torch.set_deterministic_debug_mode("warn" if torch.cuda.is_available() else "error")
    if isinstance(recipe, Adopt):
        body, layers = yolo_network.adopt(recipe.adopt, labels, shape, recipe.weights_sha256)
    else:
        layers = yolo_network.architecture(recipe.architecture, recipe.activation)
        body = yolo_network.build(layers, len(labels), shape)
    network = yolo_network.Detector(body, shape, settings.export.embedding)
    if not isinstance(recipe, Adopt):
        _begin(network, train, recipe)
    targets = np.concatenate([*train.targets, *val.targets])
    spec = ModelSpec(task="detection", labels=labels, image=shape)
    data, val_data = _scenes(train, shape), _scenes(val, shape)
    key = checkpoint.fingerprint(recipe, settings.input, settings.export.embedding, train.ids, val.ids, targets)
    if isinstance(recipe, Adopt):
        history = [fit.validate(network.to(loop.device()), val_data, val, spec)]
        log(1, history[0])
    else:
        teacher = _teacher(taught, shape) if taught else None
        history = fit.fit(
            network, data, val_data, val, spec, recipe, seed=seed, work=work, key=key, log=log, teacher=teacher
        )
    config = {"image": vars(shape), "labels": list(labels), "layers": layers, "embedding": settings.export.embedding}
    config |= _thresholds(network, val_data, val, spec)
    sample = type(data)(data.pixels[:EMBEDDING_SAMPLES], data.boxes[:EMBEDDING_SAMPLES], data.pad_value)
    features = np.concatenate([part[2] for part in fit.predict(network, sample)[0]])
    weight, bias = posthoc.principal_components(torch.from_numpy(features), settings.export.embedding)
    with torch.no_grad():
        network.embedding.weight.copy_(weight)
        network.embedding.bias.copy_(bias)
    loop.write(out, network, history, config)
    checkpoint.forget(work)


def _begin(network: Detector, train: Split, recipe: DetectionTrain) -> None:
    """Load the weights that the training starts from, and set the classes' weights in the loss."""
    import torch

    from loopline.tasks.detection import yolo_network

    if recipe.pretrained:
        yolo_network.start_from(network.network, recipe.pretrained)
    if recipe.class_weights:
        weights = loop.class_weights(np.concatenate(list(train.targets))[:, 0].astype(np.int64), len(train.labels))
        network.network.class_weights = torch.from_numpy(weights / weights.mean())


def _teacher(folder: Path, shape: ImageInput) -> Detector:
    """Return the trained network in `folder`. Raises LooplineError if it takes other images than the student."""
    network, spec = _load(folder)
    if spec.image != shape:
        raise LooplineError(
            f"train.teacher: {folder} takes images of another shape ({spec.image}), but the student takes {shape}: give both the "
            "same input in params.yaml"
        )
    return network


def _scenes(split: Split, shape: ImageInput) -> Scenes:
    from loopline.tasks.detection.mosaic import Scenes

    pixels = image.batch([item for item in split.inputs if isinstance(item, bytes)], shape)
    sizes = [(int(width), int(height)) for width, height in split.sizes]
    boxes = [task.to_input(target, *size, shape) for target, size in zip(split.targets, sizes, strict=True)]
    return Scenes(pixels, boxes, shape.pad_value)


def _thresholds(network: Detector, scenes: Scenes, truth: Split, spec: ModelSpec) -> dict[str, float]:
    """Return the overlap for suppression with the best map50 on the validation split, and then the score with the best F1."""
    batches = fit.predict(network, scenes)[0]
    boxes, scores = (np.concatenate([part[number] for part in batches]) for number in range(2))
    outputs = {iou: suppression.suppress(boxes, scores, iou=iou) for iou in NMS_IOUS}
    best = max(NMS_IOUS, key=lambda iou: task.TASK.scorer(outputs[iou], truth, spec)(None)["map50"])
    return {"nms_iou": best, "score_threshold": round(task.best_threshold(outputs[best], truth, spec), 4)}


def _load(folder: Path) -> tuple[Detector, ModelSpec]:
    from safetensors.torch import load

    from loopline.tasks.detection import yolo_network

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape, labels = ImageInput(**config["image"]), tuple(config["labels"])
    network = yolo_network.Detector(
        yolo_network.build(config["layers"], len(labels), shape), shape, config["embedding"]
    )
    network.load_state_dict(load((folder / "model.safetensors").read_bytes()))
    spec = ModelSpec(
        task="detection",
        labels=labels,
        image=shape,
        score_threshold=config["score_threshold"],
        extra={"nms_iou": config["nms_iou"]},
    )
    return network.eval(), spec


def adoptable(source: str) -> Adoptable:
    """Return the side of the images that a finished detector learnt from, and its file's sha256. Raises LooplineError."""
    from loopline.tasks.detection import yolo_network

    _, side, digest = yolo_network.finished(source)
    return Adoptable({"height": side, "width": side, "channels": 3}, digest, ADOPTED_LIMITS)


def reference(folder: Path) -> Callable[[Arrays], Arrays]:
    """Return network (torch) and suppression (numpy) as one: from `image` uint8 (n, h, w, c) to the outputs in `task`."""
    import torch

    network, spec = _load(folder)

    def run(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            boxes, scores, embedding = (tensor.numpy() for tensor in network(torch.from_numpy(inputs["image"])))
        return {**suppression.suppress(boxes, scores, iou=spec.extra["nms_iou"]), "embedding": embedding}

    return run


def export(folder: Path, train: Split, val: Split, settings: DetectionSettings, *, out: Path) -> ModelSpec:
    """Write the ONNX graph of the network in `folder` to `out`, with a dynamic batch, and return its specification.

    Batch normalisation is folded into the convolutions; suppression is appended as standard ONNX operators.
    """
    import torch

    network, spec = _load(folder)
    assert spec.image is not None
    example = torch.zeros(2, spec.image.height, spec.image.width, spec.image.channels, dtype=torch.uint8)
    graph = onnx_export.to_onnx(
        network.fused(), example, takes="image", gives=("all_boxes", "all_scores", "all_embedding")
    )
    onnx_export.save(suppression.append(graph, iou=spec.extra["nms_iou"]), out)
    return spec


def nodes_to_exclude(model: onnx.ModelProto) -> list[str]:
    """Return all nodes but the convolutions and those that join them on the way to another convolution.

    Where the head decodes, eight bits cannot hold both a position in pixels and a small score: quantized, it may lose every
    box, and the library raises no error.
    """
    leading: set[str] = set()  # names of values that lead to a convolution
    inside: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type == "Conv" or leading.intersection(node.output):
            leading.update(node.input)
            inside.add(node.name)
    return [node.name for node in model.graph.node if node.name not in inside or node.op_type not in QUANTIZED]
