"""The baselines of the image classifier, and examples of its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loopline.data.manifest import Split
from loopline.lib.arrays import Arrays
from loopline.tasks import image
from loopline.tasks.spec import ModelSpec
from loopline.training import baselines, pictures, plots

BASELINE_SAMPLES = 10_000  # logistic regression on pixels gains little from more


def majority(train: Split, test: Split, spec: ModelSpec) -> Arrays:
    """Return the shares of the classes as the probabilities of each sample."""
    return baselines.class_frequencies(train, test)


def simple(
    splits: dict[str, Split], preprocess: Any, test: Arrays, spec: ModelSpec, *, seed: int
) -> tuple[str, Arrays]:
    """Fit a logistic regression on pixels; return its name and its answers."""
    train = splits["train"]
    rows, images = baselines.some_images(train, preprocess, BASELINE_SAMPLES, seed)
    targets = np.asarray(train.targets)[rows]
    answers = baselines.logistic(baselines.shrink(images), targets, baselines.shrink(test["image"]), len(spec.labels))
    return "logistic regression on pixels", {"probabilities": answers}


def draw_examples(path: Path, outputs: Arrays, test: Split, spec: ModelSpec) -> None:
    """Draw the first samples that were classified right, and the most confident mistakes."""
    assert spec.image is not None, "a classifier's specification has an image input"
    channels = spec.image.channels
    plots.examples(path, *pictures.right_and_wrong(outputs, test, spec, lambda raw: image.decode(raw, channels)))
