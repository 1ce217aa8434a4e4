"""Choose the samples of an evaluation and draw its pictures, for the model card, MLflow and `dvc plots`."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from loopline.data.manifest import Split
from loopline.lib.arrays import Arrays
from loopline.tasks import curves
from loopline.tasks.base import Task
from loopline.tasks.spec import ModelSpec
from loopline.training import plots

RIGHT, WRONG = 8, 16


def draw(
    folder: Path,
    task: Task,
    outputs: Arrays,
    test: Split,
    spec: ModelSpec,
    *,
    history: Path,
    classes: Path,
) -> None:
    """Draw every picture into `folder`.

    history: the training's `history.csv`. classes: the data set's `classes.csv` (class, split, count).
    """
    plots.learning_curves(folder / "learning_curves.png", history)
    if counts := _distribution(classes):
        plots.class_distribution(folder / "classes.png", counts)
    rows, names = task.pairs(outputs, test, spec)
    if names:
        matrix = np.zeros((len(names), len(names)), np.int64)
        np.add.at(matrix, (rows[:, 0], rows[:, 1]), 1)
        plots.confusion(folder / "confusion.png", matrix, names)
    ranked = task.ranked(outputs, test, spec)
    points = {
        label: curves.precision_recall(answers)
        for label, answers in ranked.items()
        if answers.positives and len(answers.scores)
    }
    if points:
        plots.precision_recall(folder / "precision_recall.png", points)
    if bins := curves.reliability(*task.confidences(outputs, test, spec)):
        plots.reliability(folder / "reliability.png", bins)
    task.evaluator().draw_examples(folder / "examples.png", outputs, test, spec)


def _distribution(classes: Path) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    with classes.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            counts.setdefault(row["class"], {})[row["split"]] = int(row["count"])
    return counts


def right_and_wrong(
    outputs: Arrays, test: Split, spec: ModelSpec, shown: Callable[[Any], Any]
) -> tuple[list[plots.ShownSample], list[plots.ShownSample]]:
    """Return the first samples that were classified right, and the most confident mistakes. shown: input to picture or text."""
    probabilities = outputs["probabilities"]
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    hit = predicted == test.targets

    def answer(row: int) -> plots.ShownSample:
        return plots.ShownSample(
            sample=shown(test.inputs[row]),
            actual=spec.labels[int(np.asarray(test.targets)[row])],
            predicted=spec.labels[int(predicted[row])],
            probability=float(confidence[row]),
        )

    mistakes = np.flatnonzero(~hit)
    worst = mistakes[np.argsort(-confidence[mistakes], kind="stable")][:WRONG]
    return [answer(int(row)) for row in np.flatnonzero(hit)[:RIGHT]], [answer(int(row)) for row in worst]
