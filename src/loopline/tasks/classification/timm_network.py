"""A network of timm as the body of an image classifier. timm itself is not in the lock: see docs/pretrained.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from loopline.errors import LooplineError
from loopline.tasks.classification.image_network import ImageNetwork

if TYPE_CHECKING:
    from loopline.tasks.spec import ImageInput


class TimmNetwork(ImageNetwork):
    """A network of timm, without its head, behind the scaling that its pretrained weights ask for."""

    BODY = "body."

    def __init__(self, name: str, shape: ImageInput, *, classes: int, embedding: int) -> None:
        super().__init__(shape.channels)
        self.body: Any = _created(name, shape)
        config = self.body.pretrained_cfg
        self.pixel_mean.copy_(255 * torch.tensor(config["mean"]))
        self.pixel_scale.copy_(1 / (255 * torch.tensor(config["std"])))
        self.finish(self.body.head_hidden_size, classes=classes, embedding=embedding)

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        """Map scaled pixels (n, c, h, w) to features (n, features)."""
        features: torch.Tensor = self.body(x)
        return features


def _timm() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        raise LooplineError(
            f"architecture: timm cannot be imported ({error}). pip install timm and a torchvision that fits the installed torch"
        ) from error
    return timm


def _created(name: str, shape: ImageInput | None = None) -> Any:
    timm = _timm()
    if not timm.is_model(name):
        near = timm.list_models(f"*{name[:6]}*")[:8]
        raise LooplineError(
            f"architecture: timm has no model {name!r}" + (f". Similar names: {', '.join(near)}" if near else "")
        )
    try:
        try:  # a transformer has its size in its weights; convolutions take any, and refuse the argument
            sized = {"img_size": (shape.height, shape.width)} if shape else {}
            body = timm.create_model(name, num_classes=0, **sized)
        except TypeError:
            body = timm.create_model(name, num_classes=0)
        if shape:
            body.eval()(torch.zeros(1, shape.channels, shape.height, shape.width))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise LooplineError(
            f"architecture: timm cannot make {name!r} for this input ({reason}): correct the name, "
            "or set input.height and input.width to auto"
        ) from error
    return body.train()


def side(name: str) -> int:
    """Return the height and width in pixels of the images that the weights learnt from. Raises LooplineError without timm."""
    return int(_created(name).pretrained_cfg["input_size"][-1])


def downloaded(name: str) -> dict[str, torch.Tensor]:
    """Return the published weights, under the names of `TimmNetwork`. Raises LooplineError if they cannot be fetched.

    They come from the Hugging Face Hub as timm's own do, but never as a pickle.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from safetensors.torch import load_file

    repository = _created(name).pretrained_cfg.get("hf_hub_id")
    if not repository:
        raise LooplineError(
            f"pretrained: timm names no published weights of {name!r}: give the path of a safetensors file"
        )
    try:
        tensors = load_file(hf_hub_download(repository, "model.safetensors"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise LooplineError(
            f"pretrained: the weights of timm's {name} could not be fetched from {repository} on the Hugging Face Hub ({reason}). "
            "Without a network, give the path of their safetensors file"
        ) from error
    return {f"{TimmNetwork.BODY}{key}": tensor for key, tensor in tensors.items()}
