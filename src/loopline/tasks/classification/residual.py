"""The classifier's network: a stem that halves the image, then stages of residual blocks, each at half the size.

He et al., "Deep residual learning", 2015; the last normalisation of a block starts at zero (Goyal et al., 2017).
All channels are multiples of `width`, and a width of 16 or 32 suits 8-bit kernels.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

if TYPE_CHECKING:
    from loopline.tasks.spec import ImageInput

SMALLEST = 8  # pixels: stages are added until the map is no larger


class Pointwise(nn.Conv2d):
    """A 1x1 convolution that, during training, gets only the pixels that its stride picks.

    The backward pass of a strided one in oneDNN writes beyond a buffer if there are fewer input channels than lanes in a vector
    (oneDNN's issue 6035). The process then crashes or learns wrong weights.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, in_channels, h, w) to (n, out_channels, h / stride, w / stride)."""
        if not self.training:
            return super().forward(x)
        return nn.functional.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], self.weight, self.bias)


class ConvNorm(nn.Module):
    """A convolution without bias and its batch normalisation."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> None:
        super().__init__()
        convolution = Pointwise if kernel == 1 else nn.Conv2d
        self.conv: nn.Module = convolution(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        normalised: torch.Tensor = self.norm(self.conv(x))
        return normalised


class Block(nn.Module):
    """relu(x + f(x)) with two 3x3 convolutions in f. Where the shape changes, x goes through a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, kernel=3, stride=stride)
        self.second = ConvNorm(outputs, outputs, kernel=3)
        nn.init.zeros_(self.second.norm.weight)  # type: ignore[arg-type]
        same = inputs == outputs and stride == 1
        self.short: nn.Module = nn.Identity() if same else ConvNorm(inputs, outputs, kernel=1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.short(x))


class ImageNetwork(nn.Module):
    """The network from images to logits. Temperature and embedding are fitted after the training."""

    pixel_mean: torch.Tensor
    pixel_scale: torch.Tensor
    temperature: torch.Tensor

    def __init__(self, shape: ImageInput, *, classes: int, width: int, embedding: int) -> None:
        """width: channels of the first stage; later stages have twice as many. embedding: size of the embedding."""
        super().__init__()
        self.register_buffer("pixel_mean", torch.zeros(shape.channels))
        self.register_buffer("pixel_scale", torch.full((shape.channels,), 1 / 255))
        self.register_buffer("temperature", torch.ones(()))
        self.stem = ConvNorm(shape.channels, width, kernel=5, stride=2)
        blocks = [Block(width, width, stride=1)]
        side = max(shape.height, shape.width) // 2
        while side > SMALLEST or len(blocks) == 1:
            blocks += [Block(width, 2 * width, stride=2) if len(blocks) == 1 else Block(2 * width, 2 * width, stride=2)]
            blocks += [Block(2 * width, 2 * width, stride=1)]
            side //= 2
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(2 * width, classes)
        self.projection = nn.Linear(2 * width, embedding).requires_grad_(False)
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

    @torch.no_grad()
    def embed(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Set the linear map from features to the embedding: (d, 2 * width) and (d,)."""
        self.projection.weight.copy_(weight)
        self.projection.bias.copy_(bias)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features (n, 2 * width) of pixels (n, h, w, c), 0 to 255 of any type."""
        x = (pixels.float() - self.pixel_mean) * self.pixel_scale
        maps: torch.Tensor = self.blocks(torch.relu(self.stem(x.permute(0, 3, 1, 2))))
        return maps.mean((2, 3))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels (n, h, w, c) to logits (n, classes)."""
        logits: torch.Tensor = self.head(self.features(pixels))
        return logits

    def answer(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map pixels (n, h, w, c) to probabilities (n, classes) and embedding (n, d)."""
        features = self.features(pixels)
        return torch.softmax(self.head(features) / self.temperature, 1), self.projection(features)

    def folded(self) -> ImageNetwork:
        """Return a copy for inference, with each normalisation folded into its convolution."""
        copied = copy.deepcopy(self).eval()
        for module in copied.modules():
            if isinstance(module, ConvNorm):
                module.conv, module.norm = fuse_conv_bn_eval(module.conv, module.norm), nn.Identity()  # type: ignore[type-var, arg-type]
        return copied


class ImageAnswers(nn.Module):
    """A module whose `forward` is `ImageNetwork.answer`, as the exporter needs it."""

    def __init__(self, network: ImageNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ImageNetwork.answer`."""
        return self.network.answer(image)
