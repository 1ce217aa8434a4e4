"""Points of the curves in a report: precision over recall, and accuracy over confidence. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ranked:
    """Answers of one class: their scores, whether each is right, and how many samples or objects the class has."""

    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    positives: int


def precision_recall(ranked: Ranked, points: int = 100) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return rising recall (k,) and its precision (k,), at most `points` of each; empty without positives or answers."""
    if not ranked.positives or not len(ranked.scores):
        return np.zeros(0), np.zeros(0)
    order = np.argsort(-ranked.scores, kind="stable")
    hits = np.cumsum(ranked.hits[order])
    recall, precision = hits / ranked.positives, hits / np.arange(1, len(order) + 1)
    chosen = np.unique(np.linspace(0, len(order) - 1, points).astype(np.int64))
    return recall[chosen], precision[chosen]


def pool(ranked: dict[str, Ranked]) -> Ranked:
    """Return the answers of all classes as one ranking, for the micro average."""
    parts = list(ranked.values())
    return Ranked(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.hits for part in parts]),
        sum(part.positives for part in parts),
    )


def reliability(confidence: NDArray[Any], hit: NDArray[Any], bins: int = 10) -> list[tuple[float, float, int]]:
    """Return mean confidence, accuracy and count of each bin of equal width that is not empty."""
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    rows = []
    for number in range(bins):
        inside = index == number
        if inside.any():
            rows.append((float(confidence[inside].mean()), float(hit[inside].mean()), int(inside.sum())))
    return rows
