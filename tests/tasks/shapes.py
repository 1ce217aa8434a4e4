"""Discs and squares on a plain ground: a detection problem that a small network learns in seconds."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from loopline import settings
from loopline.data.manifest import Split
from loopline.tasks.detection.parameters import DetectionSettings

SIDE = 64
LABELS = ("disc", "square")
SMALL = str(Path(__file__).with_name("small_yolo.yaml"))


def shapes(n: int, *, seed: int, side: int = SIDE) -> Split:
    """Return PNGs of `side` pixels, each with a disc in its left half and a square in its right one."""
    random = np.random.default_rng(seed)
    inputs, targets = [], []
    for _ in range(n):
        picture = Image.new("RGB", (side, side), tuple(int(c) for c in random.integers(0, 80, 3)))
        draw = ImageDraw.Draw(picture)
        boxes = []
        for label in range(2):
            size = int(random.integers(14, 26))
            x, y = int(random.integers(0, 32 - size)) + 32 * label, int(random.integers(0, side - size))
            draw_shape = draw.rectangle if label else draw.ellipse
            draw_shape((x, y, x + size - 1, y + size - 1), fill=tuple(int(c) for c in random.integers(150, 256, 3)))
            boxes.append((label, x, y, x + size, y + size))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        inputs.append(buffer.getvalue())
        targets.append(np.array(boxes, np.float32))
    ids = [hashlib.sha256(data).hexdigest() for data in inputs]
    return Split(ids, inputs, targets, np.full((n, 2), side, np.int32), LABELS)


def small(**change: Any) -> DetectionSettings:
    """Return the default settings with a small network and small images."""
    _, model = settings.model("detector", Path(__file__).parents[1] / "params.yaml")
    assert isinstance(model, DetectionSettings)
    recipe = {"epochs": 14, "batch_size": 8, "patience": 14, "learning_rate": 0.01, "architecture": SMALL} | change
    shape = model.input.model_copy(update={"height": SIDE, "width": SIDE})
    return model.model_copy(update={"input": shape, "train": model.train.model_copy(update=recipe)})
