"""The classifier's network: a stem that halves the image, then stages of residual blocks, each at half the size.

He et al., "Deep residual learning", 2015; the last normalisation of a block starts at zero (Goyal et al., 2017).
All channels are multiples of `width`, and a width of 16 or 32 suits 8-bit kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from loopline.tasks.classification.image_network import ConvNorm, ImageNetwork

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


def convolution(inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> ConvNorm:
    """Return a normalised convolution from (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
    kind = Pointwise if kernel == 1 else nn.Conv2d
    return ConvNorm(kind(inputs, outputs, kernel, stride, kernel // 2, bias=False))


class Block(nn.Module):
    """relu(x + f(x)) with two 3x3 convolutions in f. Where the shape changes, x goes through a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, kernel=3, stride=stride)
        self.second = convolution(outputs, outputs, kernel=3)
        nn.init.zeros_(self.second.norm.weight)  # type: ignore[arg-type]
        same = inputs == outputs and stride == 1
        self.short: nn.Module = nn.Identity() if same else convolution(inputs, outputs, kernel=1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.short(x))


class ResidualNetwork(ImageNetwork):
    """The residual network, sized for its input."""

    def __init__(self, shape: ImageInput, *, classes: int, width: int, embedding: int) -> None:
        """width: channels of the first stage; later stages have twice as many. embedding: size of the embedding."""
        super().__init__(shape.channels)
        self.stem = convolution(shape.channels, width, kernel=5, stride=2)
        blocks = [Block(width, width, stride=1)]
        side = max(shape.height, shape.width) // 2
        while side > SMALLEST or len(blocks) == 1:
            blocks += [Block(width, 2 * width, stride=2) if len(blocks) == 1 else Block(2 * width, 2 * width, stride=2)]
            blocks += [Block(2 * width, 2 * width, stride=1)]
            side //= 2
        self.blocks = nn.Sequential(*blocks)
        self.finish(2 * width, classes=classes, embedding=embedding)

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        """Map scaled pixels (n, c, h, w) to features (n, 2 * width)."""
        maps: torch.Tensor = self.blocks(torch.relu(self.stem(x)))
        return maps.mean((2, 3))
