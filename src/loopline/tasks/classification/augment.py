"""Augmentation of a batch of images, in torch, so that it runs where the network runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from loopline.tasks.classification.parameters import ClassificationTrain


@dataclass(frozen=True)
class Augment:
    """Rotates, shifts, scales and mirrors images and blanks patches, each image by its own random numbers."""

    settings: ClassificationTrain

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return changed pixels as float32, from pixels (n, h, w, c), 0 to 255. Uses torch's global random numbers."""
        x = pixels.float()
        s = self.settings
        if s.rotate or s.shift or s.scale or s.flip:
            x = self._warp(x)
        return self._erase(x) if s.erase else x

    def _warp(self, x: torch.Tensor) -> torch.Tensor:
        """Apply an affine map to each image. Shifts are whole pixels, so only rotation and scaling blur."""
        import torch

        s, (n, height, width, _) = self.settings, x.shape

        def random() -> torch.Tensor:
            return torch.rand(n, device=x.device) * 2 - 1

        angle, zoom = random() * math.radians(s.rotate), 1 + random() * s.scale
        mirror = torch.where(random() < 0, -1.0, 1.0) if s.flip else torch.ones(n, device=x.device)
        across, down = ((random() * s.shift * side).round() * 2 / side for side in (width, height))
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        ratio = height / width  # grid_sample measures both sides from -1 to 1
        rows = [mirror * cos, -sin * ratio, across, mirror * sin / ratio, cos, down]
        grid = torch.nn.functional.affine_grid(
            torch.stack(rows, 1).view(n, 2, 3), [n, 1, height, width], align_corners=False
        )
        warped = torch.nn.functional.grid_sample(
            x.permute(0, 3, 1, 2), grid, padding_mode="border", align_corners=False
        )
        return warped.permute(0, 2, 3, 1)

    def _erase(self, x: torch.Tensor) -> torch.Tensor:
        """Fill a rectangle with the image's mean, in a share `erase` of the images (Zhong et al., 2017)."""
        import torch

        n, height, width, _ = x.shape
        inside = torch.rand(n, 1, 1, device=x.device) < self.settings.erase
        for axis, side in ((1, height), (2, width)):
            length = (torch.rand(n, 1, 1, device=x.device) * 0.4 + 0.1) * side
            start = torch.rand(n, 1, 1, device=x.device) * (side - length)
            place = (
                torch.arange(side, device=x.device).view(1, side, 1)
                if axis == 1
                else torch.arange(side, device=x.device)
            )
            inside = inside & (place >= start) & (place < start + length)
        return torch.where(inside.unsqueeze(3), x.mean((1, 2), keepdim=True), x)
