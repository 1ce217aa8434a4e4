"""`digit-scenes`: scikit-learn's handwritten digits in generated cluttered scenes of 128 x 128 pixels, with boxes.

No digit image is in two splits: each split's scenes use its own share of the 1,797 digit images.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from loopline.data.embedded.digits import load
from loopline.data.raw import RawBox, RawSample

SIDE = 128  # pixels
SCENES = {"train": 700, "val": 200, "test": 200}  # the digit images are divided in the same proportion
DIGITS = (2, 6)  # least and most digits in a scene
HEIGHT = (24, 48)  # pixels of a digit image, upper end excluded
MIN_CONTRAST = 80.0  # grey levels between a digit and the background under it
GAP = 2  # least pixels between two boxes

Colour = tuple[int, int, int]


def read() -> Iterator[RawSample]:
    """Yield each scene as a PNG with its boxes and split; the bytes depend only on the library versions."""
    images, labels = load()
    shared = _share(labels, np.random.default_rng(0))
    for number, (split, count) in enumerate(SCENES.items()):
        generator = np.random.default_rng([1, number])
        pool = shared[split]
        for index in range(count):
            scene, boxes = _scene(images.reshape(-1, 8, 8), labels, pool, generator)
            buffer = io.BytesIO()
            # Noise does not compress, and a higher level takes three times as long.
            scene.save(buffer, "PNG", compress_level=1)
            yield RawSample(f"{split}/{index:04d}.png", buffer.getvalue(), None, None, tuple(boxes), split)


def _share(labels: NDArray[np.int64], generator: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """The indices of each split's digit images, with the same share of every class."""
    edges = np.cumsum(list(SCENES.values())) / sum(SCENES.values())
    parts: dict[str, list[NDArray[np.int64]]] = {split: [] for split in SCENES}
    for label in np.unique(labels):
        shuffled = generator.permutation(np.flatnonzero(labels == label))
        cuts = np.round(edges[:-1] * len(shuffled)).astype(int)
        for split, part in zip(SCENES, np.split(shuffled, cuts), strict=True):
            parts[split].append(part)
    return {split: np.concatenate(indices) for split, indices in parts.items()}


def _scene(
    images: NDArray[np.float64], labels: NDArray[np.int64], pool: NDArray[np.int64], generator: np.random.Generator
) -> tuple[Image.Image, list[RawBox]]:
    scene = _background(generator)
    canvas = np.array(scene, np.float64)
    boxes: list[RawBox] = []
    for index in generator.choice(pool, generator.integers(DIGITS[0], DIGITS[1] + 1), replace=False):
        for _attempt in range(20):
            placed = _place(images[index], str(labels[index]), boxes, canvas, generator)
            if placed is not None:
                boxes.append(placed)
                break
    noisy = canvas + generator.normal(0, generator.uniform(2, 10), canvas.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), boxes


def _place(
    digit: NDArray[np.float64], label: str, taken: list[RawBox], canvas: NDArray[Any], generator: np.random.Generator
) -> RawBox | None:
    """Draw the digit on the canvas at a random place and return its box; None, undrawn, if another digit is there."""
    height = int(generator.integers(*HEIGHT))
    width = max(8, round(height * generator.uniform(0.8, 1.1)))
    glyph = Image.fromarray((digit * (255 / 16)).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    turned = glyph.rotate(generator.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
    alpha = np.asarray(turned, np.float64) / 255
    inked = alpha > 0.35
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    alpha = alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = alpha.shape
    x, y = int(generator.integers(0, SIDE - width + 1)), int(generator.integers(0, SIDE - height + 1))
    box = RawBox(label, float(x), float(y), float(x + width), float(y + height))
    if any(_touch(box, other) for other in taken):
        return None
    under = canvas[y : y + height, x : x + width]
    ink = _contrasting(under.mean((0, 1)), generator)
    solid = np.clip(alpha * 1.4, 0, 1)[:, :, None] * generator.uniform(0.8, 1)
    canvas[y : y + height, x : x + width] = under * (1 - solid) + ink * solid
    return box


def _touch(a: RawBox, b: RawBox) -> bool:
    return a.x1 < b.x2 + GAP and b.x1 < a.x2 + GAP and a.y1 < b.y2 + GAP and b.y1 < a.y2 + GAP


def _contrasting(under: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """A random colour whose brightness differs enough from the background under it."""
    while True:
        colour = generator.uniform(0, 255, 3)
        if abs(colour.mean() - under.mean()) >= MIN_CONTRAST:
            return colour


def _background(generator: np.random.Generator) -> Image.Image:
    """A colour gradient with shapes, lines and specks as clutter."""
    corners = generator.uniform(20, 235, (2, 2, 3)).astype(np.uint8)
    scene = Image.fromarray(corners).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(scene)
    for _ in range(generator.integers(2, 6)):
        x, y = generator.integers(-20, SIDE, 2)
        width, height = generator.integers(15, 70, 2)
        shape = draw.ellipse if generator.random() < 0.5 else draw.rectangle
        shape((int(x), int(y), int(x + width), int(y + height)), fill=_colour(generator))
    scene = scene.filter(ImageFilter.GaussianBlur(float(generator.uniform(0.5, 3))))
    draw = ImageDraw.Draw(scene)
    for _ in range(generator.integers(2, 7)):
        start, end = generator.integers(0, SIDE, (2, 2))
        line = (int(start[0]), int(start[1]), int(end[0]), int(end[1]))
        draw.line(line, fill=_colour(generator), width=int(generator.integers(1, 4)))
    for _ in range(generator.integers(3, 12)):
        x, y = generator.integers(0, SIDE, 2)
        size = generator.integers(2, 7)
        draw.ellipse((int(x), int(y), int(x + size), int(y + size)), fill=_colour(generator))
    return scene.filter(ImageFilter.GaussianBlur(0.6))


def _colour(generator: np.random.Generator) -> Colour:
    red, green, blue = generator.integers(20, 236, 3)
    return int(red), int(green), int(blue)
