"""The points behind the pictures: precision over recall, confidence against accuracy. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ranked:
    """Answers of one class: their scores, whether each was right, and how many there were to find."""

    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    positives: int


def precision_recall(ranked: Ranked, points: int = 100) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall (k,) rising and the precision (k,) there, at most `points` of them; empty where there was nothing to find."""
    if not ranked.positives or not len(ranked.scores):
        return np.zeros(0), np.zeros(0)
    order = np.argsort(-ranked.scores, kind="stable")
    found = np.cumsum(ranked.hits[order])
    recall, precision = found / ranked.positives, found / np.arange(1, len(order) + 1)
    chosen = np.unique(np.linspace(0, len(order) - 1, points).astype(np.int64))
    return recall[chosen], precision[chosen]


def pool(ranked: dict[str, Ranked]) -> Ranked:
    """All classes as one: the micro average."""
    parts = list(ranked.values())
    return Ranked(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.hits for part in parts]),
        sum(part.positives for part in parts),
    )


def reliability(confidence: NDArray[Any], hit: NDArray[Any], bins: int = 10) -> list[tuple[float, float, int]]:
    """For each bin of equal width that is not empty: mean confidence, accuracy, count."""
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    rows = []
    for number in range(bins):
        inside = index == number
        if inside.any():
            rows.append((float(confidence[inside].mean()), float(hit[inside].mean()), int(inside.sum())))
    return rows
