"""The pictures of one evaluation, for the model card, MLflow and `dvc plots`: which samples are shown, and what is drawn."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.data.manifest import Split
from loopline.tasks import curves, image
from loopline.tasks.spec import ModelSpec
from loopline.training import plots

RIGHT, WRONG, SCENES = 8, 16, 6


def draw(
    folder: Path,
    task: Any,
    outputs: dict[str, NDArray[Any]],
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
    plots.class_distribution(folder / "classes.png", _distribution(classes))
    rows, names = task.pairs(outputs, test, spec)
    matrix = np.zeros((len(names), len(names)), np.int64)
    np.add.at(matrix, (rows[:, 0], rows[:, 1]), 1)
    plots.confusion(folder / "confusion.png", matrix, names)
    ranked = task.ranked(outputs, test, spec)
    points = {
        label: curves.precision_recall(found)
        for label, found in ranked.items()
        if found.positives and len(found.scores)
    }
    if points:
        plots.precision_recall(folder / "precision_recall.png", points)
    if bins := curves.reliability(*task.confidences(outputs, test, spec)):
        plots.reliability(folder / "reliability.png", bins)
    if spec.task == "detection":
        plots.detections(folder / "examples.png", scenes(task, outputs, test, spec), spec.labels)
        return
    right, wrong = answers(outputs, test, spec)
    (plots.text_examples if spec.task == "text" else plots.examples)(folder / "examples.png", right, wrong)


def _distribution(classes: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    with classes.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["class"], {})[row["split"]] = int(row["count"])
    return found


def answers(
    outputs: dict[str, NDArray[Any]], test: Split, spec: ModelSpec
) -> tuple[list[plots.ShownSample], list[plots.ShownSample]]:
    """The first samples that were classified right, and the most confident mistakes."""
    probabilities = outputs["probabilities"]
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    hit = predicted == test.targets

    def answer(row: int) -> plots.ShownSample:
        raw = test.inputs[row]
        sample = raw if isinstance(raw, str) else image.decode(raw, spec.image.channels if spec.image else 3)
        return plots.ShownSample(
            sample=sample,
            actual=spec.labels[int(np.asarray(test.targets)[row])],
            predicted=spec.labels[int(predicted[row])],
            probability=float(confidence[row]),
        )

    mistakes = np.flatnonzero(~hit)
    worst = mistakes[np.argsort(-confidence[mistakes], kind="stable")][:WRONG]
    return [answer(int(row)) for row in np.flatnonzero(hit)[:RIGHT]], [answer(int(row)) for row in worst]


def scenes(task: Any, outputs: dict[str, NDArray[Any]], test: Split, spec: ModelSpec) -> list[plots.Scene]:
    """The first images with their true boxes and the found ones, in pixels of the originals."""
    index = {label: number for number, label in enumerate(spec.labels)}
    few = {name: values[:SCENES] for name, values in outputs.items()}
    found = task.answers(few, spec, test.sizes[:SCENES])
    return [
        plots.Scene(
            image=image.decode(bytes(raw), 3) if isinstance(raw, bytes) else np.zeros((1, 1, 3), np.uint8),
            truth=np.asarray(truth),
            found=np.array(
                [(index[b["label"]], b["x1"], b["y1"], b["x2"], b["y2"], b["score"]) for b in answer["boxes"]]
            ).reshape(-1, 6),
        )
        for raw, truth, answer in zip(test.inputs, test.targets, found, strict=False)
    ]
