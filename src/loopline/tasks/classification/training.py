"""The image classifier, from a manifest's splits to `model.onnx`: trained from scratch, fine-tuned, or a probe.

Writes `model.safetensors` (weights, normalisation, temperature and embedding), `config.json` and `history.csv` to the
train folder, and the ONNX graph to the export folder. Run by the stages `train` and `export`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from loopline.lib.arrays import Arrays
from loopline.settings import Adopt
from loopline.tasks import image
from loopline.tasks.base import Adoptable
from loopline.tasks.classification import architectures, onnx_file, onnx_model
from loopline.tasks.classification.parameters import RESIDUAL
from loopline.tasks.spec import ImageInput, ModelSpec
from loopline.training import checkpoint, loop, onnx_export, posthoc
from loopline.training.distillation import Taught, labelled

if TYPE_CHECKING:
    import onnx
    import torch

    from loopline.data.manifest import Split
    from loopline.tasks.classification.image_network import ImageNetwork
    from loopline.tasks.classification.parameters import ClassificationSettings

QUANTIZATION: Literal["static", "dynamic"] = "static"
EMBEDDING_SAMPLES = 8192  # enough for the principal components of some tens of features


def train(
    train: Split,
    val: Split,
    settings: ClassificationSettings,
    *,
    seed: int,
    out: Path,
    work: Path,
    log: Callable[[int, dict[str, float]], None],
    taught: Taught | None = None,
) -> None:
    """Train on `train`, choose the epoch and the temperature on `val`, and write the files named above.

    Resumes from a checkpoint in `work` of the same settings, data and seed. Raises LooplineError on a bad `pretrained`.
    """
    import torch

    from loopline.tasks.classification import probe
    from loopline.tasks.classification.augment import Augment

    loop.reproducible(seed)
    options = settings.train
    if isinstance(options, Adopt):
        log(1, onnx_model.adopt(train, val, settings, options, out=out, first=EMBEDDING_SAMPLES))
        return
    network, config = architectures.begin(settings, options, len(train.labels))
    shape = ImageInput(**config["image"])
    pixels, val_pixels = (image.batch(list(_images(split)), shape) for split in (train, val))
    if options.architecture == RESIDUAL and not options.probe:
        network.normalise(pixels[: labelled(train)])
    data = replace(_data(pixels, train, Augment(options)), taught=taught)
    val_data = _data(val_pixels, val)
    if options.probe:
        history = probe.fit(network, _data(pixels, train), val_data, options, log)
    else:
        key = checkpoint.fingerprint(options, config, *loop.identity(train, val))
        history = loop.fit(network, data, val_data, options, seed=seed, work=work, key=key, log=log)
    network.temperature.fill_(posthoc.temperature(loop.predict(network, val_data), torch.from_numpy(val_data.targets)))
    features = loop.predict(network.features, _data(pixels[: min(labelled(train), EMBEDDING_SAMPLES)], train))
    network.embed(*posthoc.principal_components(features, settings.export.embedding))
    loop.write(out, network, history, {"labels": list(train.labels), **config})
    checkpoint.forget(work)


def _images(split: Split) -> list[bytes]:
    return [item for item in split.inputs if isinstance(item, bytes)]


def _data(
    pixels: NDArray[np.uint8], split: Split, augment: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> loop.Data:
    import torch

    tensor = torch.from_numpy(pixels)
    return loop.Data(
        inputs=lambda rows: tensor[rows], targets=np.asarray(split.targets, np.int64)[: len(pixels)], augment=augment
    )


def _load(folder: Path) -> tuple[ImageNetwork, ModelSpec]:
    from safetensors.torch import load

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape, labels = ImageInput(**config["image"]), tuple(config["labels"])
    network = architectures.build(config, classes=len(labels))
    network.load_state_dict(load((folder / "model.safetensors").read_bytes()))
    network.eval()
    spec = ModelSpec(task="classification", labels=labels, image=shape, temperature=float(network.temperature))
    return network, spec


def adoptable(source: str) -> Adoptable:
    """Return the shape of the images that a finished graph takes, and its file's sha256. Raises LooplineError."""
    _, _, shape, digest = onnx_file.finished(source)
    return Adoptable({"height": shape.height, "width": shape.width, "channels": shape.channels}, digest)


def reference(folder: Path) -> Callable[[Arrays], Arrays]:
    """Return the network in torch: from `image` uint8 (n, h, w, c) to `probabilities` (n, classes) and `embedding` (n, d)."""
    if (folder / onnx_model.ADOPTED).exists():
        return onnx_model.reference(folder)
    network, _ = _load(folder)
    return onnx_export.reference(network.answer, takes="image")


def export(folder: Path, train: Split, val: Split, settings: ClassificationSettings, *, out: Path) -> ModelSpec:
    """Write the ONNX graph of the network in `folder` to `out`, with a dynamic batch, and return its specification.

    Batch normalisation is folded into the convolutions, so that quantization sees one node for each.
    """
    import torch

    from loopline.training.classifier_network import Answers

    if (folder / onnx_model.ADOPTED).exists():
        return onnx_model.export(folder, out=out)
    network, spec = _load(folder)
    assert spec.image is not None
    example = torch.zeros(2, spec.image.height, spec.image.width, spec.image.channels, dtype=torch.uint8)
    graph = onnx_export.to_onnx(Answers(network.folded()), example, takes="image", gives=("probabilities", "embedding"))
    onnx_export.save(graph, out)
    return spec


def nodes_to_exclude(model: onnx.ModelProto) -> list[str]:
    """Return the nodes that stay in FP32: all but the convolutions, what joins them, and the pool.

    Scaling, head, softmax and embedding are a thousandth of the work, and the last two would lose most accuracy. A Clip (ReLU6)
    must be among the quantized: else a convolution gets the range of its values before they are clipped, which lost four points.
    """
    quantized = {"Conv", "Add", "Relu", "Clip", "GlobalAveragePool", "ReduceMean", "MaxPool"}
    leading: set[str] = set()  # names of values that lead to a convolution or to the pool
    inside: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type in ("Conv", "GlobalAveragePool", "ReduceMean") or leading.intersection(node.output):
            leading.update(node.input)
            inside.add(node.name)
    return [node.name for node in model.graph.node if node.name not in inside or node.op_type not in quantized]
