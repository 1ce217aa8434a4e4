"""The baselines of the detector, and examples of its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loopline.data.manifest import Split
from loopline.lib.arrays import Arrays
from loopline.tasks import image
from loopline.tasks.detection import blobs, task
from loopline.tasks.spec import ModelSpec
from loopline.training import baselines, plots

BASELINE_IMAGES = 300  # of the training split
SHOWN_SCENES = 6


def majority(train: Split, test: Split, spec: ModelSpec) -> Arrays:
    """Return the commonest class in the average box."""
    assert spec.image is not None, "a detector's specification has an image input"
    shape, n = (spec.image.width, spec.image.height), len(test.ids)
    rows = np.concatenate(train.targets)
    share = np.bincount(rows[:, 0].astype(int), minlength=len(train.labels)) / len(rows)
    counts = [len(objects) for objects in train.targets]
    sides = np.tile(np.stack([np.repeat(train.sizes[:, axis], counts) for axis in (0, 1)], 1), 2)
    box = (rows[:, 1:] / sides).mean(0) * np.tile(shape, 2)
    return {
        "boxes": np.tile(box.astype(np.float32), (n, 1, 1)),
        "scores": np.full((n, 1), share.max(), np.float32),
        "classes": np.full((n, 1), int(share.argmax()), np.int64),
    }


def simple(
    splits: dict[str, Split], preprocess: Any, test: Arrays, spec: ModelSpec, *, seed: int
) -> tuple[str, Arrays]:
    """Detect blobs of contrast with a logistic regression; return its name and its answers."""
    assert spec.image is not None, "a detector's specification has an image input"
    train = splits["train"]
    rows, images = baselines.some_images(train, preprocess, BASELINE_IMAGES, seed)
    sizes = {row: (int(train.sizes[row, 0]), int(train.sizes[row, 1])) for row in rows}
    boxes = [task.to_input(train.targets[row], *sizes[row], spec.image) for row in rows]
    return "contrast blobs with logistic regression", blobs.detect(images, boxes, test["image"], len(spec.labels))


def draw_examples(path: Path, outputs: Arrays, test: Split, spec: ModelSpec) -> None:
    """Draw the first images with their true boxes and the model's."""
    plots.detections(path, scenes(outputs, test, spec), spec.labels)


def scenes(outputs: Arrays, test: Split, spec: ModelSpec) -> list[plots.Scene]:
    """Return the first images with their true and predicted boxes, in pixels of the originals."""
    index = {label: number for number, label in enumerate(spec.labels)}
    shown = {name: values[:SHOWN_SCENES] for name, values in outputs.items()}
    answers = task.TASK.answers(shown, spec, test.sizes[:SHOWN_SCENES])
    return [
        plots.Scene(
            image=image.decode(bytes(raw), 3) if isinstance(raw, bytes) else np.zeros((1, 1, 3), np.uint8),
            truth=np.asarray(truth),
            predicted=np.array(
                [(index[b["label"]], b["x1"], b["y1"], b["x2"], b["y2"], b["score"]) for b in answer["boxes"]]
            ).reshape(-1, 6),
        )
        for raw, truth, answer in zip(test.inputs, test.targets, answers, strict=False)
    ]
