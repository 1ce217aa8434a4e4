"""What the regression is compared with: the mean, and a regression on the mean brightness alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from loopline.lib.arrays import Arrays
from loopline.tasks.spec import ModelSpec


def majority(train, test, spec: ModelSpec) -> Arrays:
    """Always the mean."""
    return {"value": np.full(len(test.ids), train.targets.mean())}


def simple(splits, preprocess, test: Arrays, spec: ModelSpec, *, seed: int) -> tuple[str, Arrays]:
    """A line through mean brightness and number."""
    train = splits["train"]
    line = np.polyfit(preprocess(train.inputs)["image"].mean((1, 2, 3)), train.targets, 1)
    return "a line through the brightness", {"value": np.polyval(line, test["image"].mean((1, 2, 3)))}


def draw_examples(path: Path, outputs: Arrays, test, spec: ModelSpec) -> None:
    """One grey square for each answer."""
    Image.fromarray(np.uint8(outputs["value"][None, :64] * 10)).save(path)
