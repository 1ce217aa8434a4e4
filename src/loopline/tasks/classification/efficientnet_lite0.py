"""EfficientNet-Lite0, which ImageNet's pretrained weights fit: inverted residual blocks with ReLU6, without squeeze and excitation.

Tan and Le, "EfficientNet", 2019; the Lite variants are by Liu (TensorFlow blog, March 2020). Padding is TensorFlow's SAME.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from loopline.tasks.classification.image_network import ConvNorm, ImageNetwork

if TYPE_CHECKING:
    from loopline.tasks.spec import ImageInput

SIDE = 224  # pixels, that of the training on ImageNet
MEAN, SCALE = 127.0, 1 / 128  # of a pixel, 0 to 255
FEATURES = 1280
# kernel, stride of the first block, factor of expansion, channels, blocks
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
# What the published weights call the parts, outside of a block and inside
OUTER = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "last.conv", "_bn1": "last.norm"}
INNER = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


class SamePadded(nn.Conv2d):
    """A convolution whose output has ceil(side / stride) pixels a side, as in TensorFlow: an odd pixel of padding comes last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs, h, w) to (n, outputs, ceil(h / stride), ceil(w / stride))."""
        pads = []
        for side, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            pad = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [pad // 2, pad - pad // 2]
        return super().forward(nn.functional.pad(x, pads) if any(pads) else x)


def convolution(inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> ConvNorm:
    """Return a normalised convolution from (n, inputs, h, w) to (n, outputs, ceil(h / stride), ceil(w / stride))."""
    return ConvNorm(SamePadded(inputs, outputs, kernel, stride, groups=groups, bias=False), epsilon=1e-3)


class InvertedResidual(nn.Module):
    """Expansion by 1x1, a depthwise convolution, projection by 1x1 without activation; plus the input where the shape is the same."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, factor: int) -> None:
        super().__init__()
        inner = inputs * factor
        self.expand: nn.Module | None = convolution(inputs, inner) if factor > 1 else None
        self.depthwise = convolution(inner, inner, kernel=kernel, stride=stride, groups=inner)
        self.project = convolution(inner, outputs)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs, h, w) to (n, outputs, ceil(h / stride), ceil(w / stride))."""
        inner = nn.functional.relu6(self.expand(x)) if self.expand else x
        outputs: torch.Tensor = self.project(nn.functional.relu6(self.depthwise(inner)))
        return x + outputs if self.residual else outputs


class EfficientNetLite0(ImageNetwork):
    """The network of 4.6 million parameters, with a head for the given classes."""

    def __init__(self, shape: ImageInput, *, classes: int, embedding: int) -> None:
        super().__init__(shape.channels)
        self.pixel_mean.fill_(MEAN)
        self.pixel_scale.fill_(SCALE)
        self.stem = convolution(shape.channels, 32, kernel=3, stride=2)
        blocks, channels = [], 32
        for kernel, stride, factor, outputs, count in STAGES:
            for number in range(count):
                blocks.append(
                    InvertedResidual(channels, outputs, kernel=kernel, stride=1 if number else stride, factor=factor)
                )
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = convolution(channels, FEATURES)
        self.finish(FEATURES, classes=classes, embedding=embedding)

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        """Map scaled pixels (n, c, h, w) to features (n, 1280)."""
        maps = nn.functional.relu6(self.last(self.blocks(nn.functional.relu6(self.stem(x)))))
        return maps.mean((2, 3))


def renamed(published: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of the published weights under the names of this network, without the head for ImageNet's classes."""
    tensors = {}
    for name, tensor in published.items():
        block, part, rest = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(_\w+)\.(\w+)", name).groups()  # type: ignore[union-attr]
        if part != "_fc":
            place = f"blocks.{block}.{INNER[part]}" if block else OUTER[part]
            tensors[f"{place}.{rest}"] = tensor
    return tensors
