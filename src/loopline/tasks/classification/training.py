"""The image classifier: a small residual network, from a manifest's splits to `model.onnx`.

Writes `model.safetensors` (weights, normalisation, temperature and embedding), `config.json` and `history.csv` to the
train folder, and the ONNX graph to the export folder. Run by the stages `train` and `export`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from loopline.errors import LooplineError
from loopline.lib.arrays import Arrays
from loopline.settings import located
from loopline.tasks import image
from loopline.tasks.spec import ImageInput, ModelSpec
from loopline.training import checkpoint, loop, onnx_export, posthoc

if TYPE_CHECKING:
    import onnx
    import torch

    from loopline.data.manifest import Split
    from loopline.tasks.classification.parameters import ClassificationSettings
    from loopline.tasks.classification.residual import ImageNetwork

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
) -> None:
    """Train on `train`, choose the epoch and the temperature on `val`, and write the files named above.

    Resumes from a checkpoint in `work` of the same settings, data and seed. Raises LooplineError on a bad `pretrained`.
    """
    import torch

    from loopline.tasks.classification.augment import Augment
    from loopline.tasks.classification.residual import ImageNetwork

    shape = ImageInput(**settings.input.model_dump())
    pixels, val_pixels = (image.batch(list(_images(split)), shape) for split in (train, val))
    loop.reproducible(seed)
    network = ImageNetwork(
        shape, classes=len(train.labels), width=settings.train.width, embedding=settings.export.embedding
    )
    network.normalise(pixels)
    if settings.train.pretrained:
        start_from(network, settings.train.pretrained)
    data = _data(pixels, train, Augment(settings.train))
    val_data = _data(val_pixels, val)
    key = checkpoint.fingerprint(settings.train, settings.input, settings.export.embedding, *loop.identity(train, val))
    history = loop.fit(network, data, val_data, settings.train, seed=seed, work=work, key=key, log=log)
    network.temperature.fill_(posthoc.temperature(loop.predict(network, val_data), torch.from_numpy(val_data.targets)))
    features = loop.predict(network.features, _data(pixels[:EMBEDDING_SAMPLES], train))
    network.embed(*posthoc.principal_components(features, settings.export.embedding))
    config = {"image": vars(shape), "labels": list(train.labels), "width": settings.train.width}
    loop.write(out, network, history, config | {"embedding": settings.export.embedding})
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


def start_from(network: ImageNetwork, pretrained: str) -> None:
    """Load those tensors of an earlier run that fit. A head for other classes or another first layer stays as it is.

    Raises LooplineError if the file is missing, is not a safetensors file, or if no block of it fits.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(located(pretrained).read_bytes())
    except OSError as error:
        raise LooplineError(
            f"pretrained: no file {pretrained!r}. Give the path of a model.safetensors that an earlier training wrote "
            "(models/<name>/train/model.safetensors); there are no published weights of this network"
        ) from error
    except SafetensorError as error:
        raise LooplineError(f"pretrained: {pretrained!r} is not a safetensors file ({error})") from error
    own = network.state_dict()
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    if not any(name.startswith("blocks.") and tensor.ndim == 4 for name, tensor in fitting.items()):
        raise LooplineError(
            f"pretrained: no block of {pretrained!r} fits a network of this size: set width to that of the earlier training"
        )
    network.load_state_dict(fitting, strict=False)


def _load(folder: Path) -> tuple[ImageNetwork, ModelSpec]:
    from safetensors.torch import load

    from loopline.tasks.classification.residual import ImageNetwork

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape, labels = ImageInput(**config["image"]), tuple(config["labels"])
    network = ImageNetwork(shape, classes=len(labels), width=config["width"], embedding=config["embedding"])
    network.load_state_dict(load((folder / "model.safetensors").read_bytes()))
    network.eval()
    spec = ModelSpec(task="classification", labels=labels, image=shape, temperature=float(network.temperature))
    return network, spec


def reference(folder: Path) -> Callable[[Arrays], Arrays]:
    """Return the network in torch: from `image` uint8 (n, h, w, c) to `probabilities` (n, classes) and `embedding` (n, d)."""
    network, _ = _load(folder)
    return onnx_export.reference(network.answer, takes="image")


def export(folder: Path, train: Split, val: Split, settings: ClassificationSettings, *, out: Path) -> ModelSpec:
    """Write the ONNX graph of the network in `folder` to `out`, with a dynamic batch, and return its specification.

    Batch normalisation is folded into the convolutions, so that quantization sees one node for each.
    """
    import torch

    from loopline.tasks.classification.residual import ImageAnswers

    network, spec = _load(folder)
    assert spec.image is not None
    example = torch.zeros(2, spec.image.height, spec.image.width, spec.image.channels, dtype=torch.uint8)
    graph = onnx_export.to_onnx(
        ImageAnswers(network.folded()), example, takes="image", gives=("probabilities", "embedding")
    )
    onnx_export.save(graph, out)
    return spec


def nodes_to_exclude(model: onnx.ModelProto) -> list[str]:
    """Return the nodes that stay in FP32: all but the convolutions, what joins them, and the pool.

    Scaling, head, softmax and embedding are a thousandth of the work, and the last two would lose most accuracy.
    """
    quantized = {"Conv", "Add", "Relu", "GlobalAveragePool", "ReduceMean", "MaxPool"}
    return [node.name for node in model.graph.node if node.op_type not in quantized]
