"""Augmentation of images with boxes: mosaic, scale, shift, flips and colour, a function of one random generator. Pillow and numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from loopline.lib.arrays import Boxes, Pixels

if TYPE_CHECKING:
    from loopline.tasks.detection.parameters import DetectionTrain

LEAST_VISIBLE = 0.2  # share of a box that must stay in the image; otherwise the box is dropped
LEAST_SIDE = 2.0  # pixels


@dataclass(frozen=True)
class Scenes:
    """Images uint8 (n, h, w, c) and for each its boxes (k, 5): class, x1, y1, x2, y2 in their pixels."""

    pixels: Pixels
    boxes: list[Boxes]
    pad_value: int

    def augmented(
        self, row: int, recipe: DetectionTrain, random: np.random.Generator, *, mosaic: bool
    ) -> tuple[Pixels, Boxes]:
        """Return image `row` and its boxes, changed at random within the limits of `recipe`, at the same size."""
        if mosaic and random.random() < recipe.mosaic:
            rows = [row, *random.integers(0, len(self.pixels), 3)]
            canvas, boxes = self._tiled(rows, random)
            shift = 0.5
        else:
            canvas, boxes = self.pixels[row], self.boxes[row]
            shift = recipe.shift
        canvas, boxes = self._warped(canvas, boxes, shift, recipe, random)
        return _recoloured(canvas, recipe, random), boxes

    def _tiled(self, rows: list[Any], random: np.random.Generator) -> tuple[Pixels, Boxes]:
        """Return four images, tiled two by two in random order, and their boxes."""
        height, width = self.pixels.shape[1:3]
        rows = list(random.permutation(rows))
        canvas = np.concatenate([np.concatenate([self.pixels[a], self.pixels[b]], 1) for a, b in (rows[:2], rows[2:])])
        corners = [(0, 0), (width, 0), (0, height), (width, height)]
        moved = [
            self.boxes[row] + np.array([0, x, y, x, y], np.float32) for row, (x, y) in zip(rows, corners, strict=True)
        ]
        return canvas, np.concatenate(moved)

    def _warped(
        self, canvas: Pixels, boxes: Boxes, shift: float, recipe: DetectionTrain, random: np.random.Generator
    ) -> tuple[Pixels, Boxes]:
        """Return a window on the canvas, resized to an image. Its middle is up to `shift` of that size off the centre."""
        height, width, channels = self.pixels.shape[1:]
        size = np.array([width, height], np.float64)
        flip = np.where(random.random(2) < [recipe.flip_horizontal, recipe.flip_vertical], -1.0, 1.0)
        zoom = flip * np.exp(random.uniform(-1, 1) * np.log1p(recipe.scale))
        middle = np.array([canvas.shape[1], canvas.shape[0]]) / 2 + random.uniform(-shift, shift, 2) * size
        start = middle - size / zoom / 2  # the window's corner: canvas = start + out / zoom
        affine = (1 / zoom[0], 0, start[0], 0, 1 / zoom[1], start[1])
        picture = Image.fromarray(canvas if channels == 3 else canvas[:, :, 0])
        fill = (self.pad_value,) * channels if channels == 3 else self.pad_value
        warped = picture.transform(
            (width, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR, fillcolor=fill
        )
        corners = (boxes[:, 1:].reshape(-1, 2, 2) - start) * zoom
        full = np.abs(corners[:, 1] - corners[:, 0])
        corners = np.clip(np.sort(corners, axis=1), 0, size)
        seen = corners[:, 1] - corners[:, 0]
        kept = (seen.min(1, initial=np.inf) >= LEAST_SIDE) & (seen.prod(1) >= LEAST_VISIBLE * full.prod(1))
        moved = np.concatenate([boxes[:, :1], corners.reshape(-1, 4)], 1)[kept]
        return np.asarray(warped, np.uint8).reshape(height, width, channels), moved.astype(np.float32)


def _recoloured(image: Pixels, recipe: DetectionTrain, random: np.random.Generator) -> Pixels:
    """Turn the hue, stretch saturation and brightness; a grey image only gets lighter or darker."""
    turn, *stretch = random.uniform(-1, 1, 3) * [recipe.hue, recipe.saturation, recipe.brightness]
    levels = np.arange(256)
    tables = [(levels + turn * 256) % 256, *(np.clip(levels * (1 + by), 0, 255) for by in stretch)]
    if image.shape[2] == 1:
        return np.asarray(tables[2].astype(np.uint8)[image])
    table = [int(value) for value in np.concatenate(tables)]
    return np.asarray(Image.fromarray(image).convert("HSV").point(table).convert("RGB"), np.uint8)
