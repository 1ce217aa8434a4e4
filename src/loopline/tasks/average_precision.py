"""Average precision as COCO defines it (Lin et al., 2014), and as pycocotools computes it, for weighted images. Numpy only.

Boxes and objects are paired once; a bootstrap then only changes the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.tasks.bootstrap import Weights

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


def overlap(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return the intersection over union (m, k) of boxes (m, 4) and (k, 4)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0), np.float64)


@dataclass(frozen=True)
class Matches:
    """All d boxes of the model in falling order of score, and whether each hits an object at each overlap of IOUS.

    image, label: int64 (d,). score: float64 (d,). hits: bool (10, d). present: int64 (n, classes), objects in each of n images.
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    score: NDArray[np.float64]
    hits: NDArray[np.bool_]
    present: NDArray[np.int64]


def matched(
    boxes: NDArray[Any], scores: NDArray[Any], classes: NDArray[Any], targets: Sequence[NDArray[Any]], labels: int
) -> Matches:
    """Pair boxes with objects of their class. In falling order of score, each box takes the free object that it overlaps most.

    boxes: (n, m, 4); scores: (n, m), 0 for padding; classes: (n, m); targets: for each image (k, 5), class and corners.
    """
    scores = np.asarray(scores, np.float64)
    hits = np.zeros((len(IOUS), *scores.shape), bool)
    present = np.zeros((len(scores), labels), np.int64)
    for number, target in enumerate(targets):
        true_classes = target[:, 0].astype(np.int64)
        present[number] = np.bincount(true_classes, minlength=labels)
        answered = np.argsort(-scores[number], kind="stable")[: np.count_nonzero(scores[number] > 0)]
        shared = overlap(boxes[number, answered], target[:, 1:]) * (classes[number, answered][:, None] == true_classes)
        free = np.ones((len(IOUS), len(target)), bool)
        for column, row in zip(answered, shared, strict=True):
            if row.max(initial=0) < IOUS[0]:
                continue
            free_overlap = np.where(free, row, 0)
            best = free_overlap.argmax(1)
            matched_at = np.flatnonzero(free_overlap.max(1) >= IOUS)
            free[matched_at, best[matched_at]] = False
            hits[matched_at, number, column] = True
    rows, columns = np.nonzero(scores > 0)
    order = np.argsort(-scores[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    return Matches(
        rows,
        np.asarray(classes)[rows, columns].astype(np.int64),
        scores[rows, columns],
        hits[:, rows, columns],
        present,
    )


def average_precision(matches: Matches, label: int) -> Callable[[Weights | None], NDArray[np.float64]]:
    """Return the average precision of a class at each of IOUS (10,) as a function of image weights. It is NaN without objects.

    It is interpolated at 101 recalls (Lin et al., COCO, 2014; pycocotools). An image of weight w counts as w copies of it.
    """
    of_class = np.flatnonzero(matches.label == label)
    images, hits = matches.image[of_class], matches.hits[:, of_class]
    last = np.flatnonzero(hits.any(0))  # recall rises only at hits, and precision is largest there
    hit_weight = hits[:, last].astype(np.float64)
    objects = matches.present[:, label].astype(np.float64)
    rows = np.arange(len(IOUS))[:, None]

    def score(weights: Weights | None = None) -> NDArray[np.float64]:
        total = objects.sum() if weights is None else objects @ weights
        if not total > 0:
            return np.full(len(IOUS), np.nan)
        if not len(last):
            return np.zeros(len(IOUS))
        w = np.ones(len(images)) if weights is None else weights[images]
        box_count = np.cumsum(w)[last]
        hit_count = np.cumsum(hit_weight * w[last], axis=1)
        precision = np.divide(hit_count, box_count, out=np.zeros_like(hit_count), where=box_count > 0)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = hit_count / total + 1e-12  # so that 3/10 is not below .3
        # One search for the ten curves: each is lifted by 2 above the one before.
        at = np.searchsorted((recall + 2 * rows).ravel(), (RECALLS + 2 * rows).ravel()).reshape(len(IOUS), -1)
        at -= rows * len(last)
        inside = at < len(last)
        values = np.take_along_axis(envelope, np.minimum(at, len(last) - 1), axis=1)
        return np.asarray((values * inside).mean(1), np.float64)

    return score
