"""What all image networks share: the scaling of the pixels, and convolutions that can be folded."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from loopline.training.classifier_network import ClassifierNetwork


class ConvNorm(nn.Module):
    """A convolution without bias and its batch normalisation."""

    def __init__(self, conv: nn.Conv2d, *, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.conv: nn.Module = conv
        self.norm: nn.Module = nn.BatchNorm2d(conv.out_channels, eps=epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        normalised: torch.Tensor = self.norm(self.conv(x))
        return normalised


class ImageNetwork(ClassifierNetwork):
    """A network from images.

    A subclass makes its layers, then calls `finish`, so that the random numbers of a seed come in that order.
    """

    BODY = "blocks."  # what the names of its layers begin with, but for the first and the last ones
    pixel_mean: torch.Tensor
    pixel_scale: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.zeros(channels))
        self.register_buffer("pixel_scale", torch.full((channels,), 1 / 255))
        self.register_buffer("temperature", torch.ones(()))

    def finish(self, features: int, *, classes: int, embedding: int) -> None:
        """Make the head and the projection, which take `features` features, and lay all out for the CPU's kernels."""
        self.head = nn.Linear(features, classes)
        self.projection = nn.Linear(features, embedding).requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def normalise(self, pixels: NDArray[np.uint8]) -> None:
        """Set mean and deviation of each channel to those of the training images, uint8 (n, h, w, c)."""
        sums, squares = np.zeros((2, pixels.shape[3]))
        for start in range(0, min(len(pixels), 4096), 64):  # in parts: all of them would be gigabytes in float64
            part = pixels[start : start + 64].astype(np.float64)
            sums, squares = sums + part.sum((0, 1, 2)), squares + np.square(part).sum((0, 1, 2))
        count = pixels[:4096, ..., 0].size
        deviation = np.sqrt((squares - sums**2 / count) / (count - 1))
        self.pixel_mean.copy_(torch.from_numpy(sums / count))
        self.pixel_scale.copy_(torch.from_numpy(1 / np.maximum(deviation, 1.0)))

    def features(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the features (n, features) of pixels (n, h, w, c), 0 to 255 of any type."""
        x = (batch.float() - self.pixel_mean) * self.pixel_scale
        return self.pooled(x.permute(0, 3, 1, 2))

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        """Map scaled pixels (n, c, h, w) to features (n, features)."""
        raise NotImplementedError

    def folded(self) -> ImageNetwork:
        """Return a copy for inference, with each normalisation folded into its convolution."""
        copied = copy.deepcopy(self).eval()
        for module in copied.modules():
            if isinstance(module, ConvNorm):
                module.conv, module.norm = fuse_conv_bn_eval(module.conv, module.norm), nn.Identity()  # type: ignore[type-var, arg-type]
        return copied
