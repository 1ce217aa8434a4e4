"""Object detection: boxes with a class and a score. Numpy only.

The graph answers with `boxes` (n, m, 4) x1, y1, x2, y2 in input pixels, `scores` (n, m) in falling order, 0 for padding,
and `classes` (n, m). Everything here is measured in pixels of the upright original.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.lib.arrays import Arrays
from loopline.tasks import image
from loopline.tasks.average_precision import IOUS, Matches, average_precision, matched, overlap
from loopline.tasks.bootstrap import Scorer, Weights
from loopline.tasks.curves import Ranked
from loopline.tasks.spec import ImageInput, ModelSpec, Truth

HEADLINE = "map50"
QUALITY = "f1"  # what `quality` is the mean of: an mAP is no mean over images
NOTHING = "(nothing)"  # in the confusion table: a box that is not there, or was not found


def preprocessor(spec: ModelSpec, folder: Path) -> Callable[[Sequence[bytes]], Arrays]:
    """From encoded images to `{"image": uint8 (n, h, w, 3)}`, letterboxed."""
    assert spec.image is not None, "a detector's specification has an image input"
    shape = spec.image
    return lambda images: {"image": image.batch(list(images), shape)}


def answers(outputs: Arrays, spec: ModelSpec, sizes: NDArray[Any]) -> list[dict[str, Any]]:
    """One `{"boxes": [{"label", "score", "x1", "y1", "x2", "y2"}, ...]}` an image, best first.

    Boxes under spec.score_threshold are left out.
    sizes: (n, 2) width, height of the upright originals, in whose pixels the boxes are, clipped to the image.
    """
    placed = to_original(outputs["boxes"], sizes, spec)
    found = []
    for boxes, scores, classes in zip(placed, outputs["scores"], outputs["classes"], strict=True):
        seen = np.flatnonzero(scores >= spec.score_threshold)
        corners = [dict(zip(("x1", "y1", "x2", "y2"), map(float, boxes[i]), strict=True)) for i in seen]
        named = [{"label": spec.labels[classes[i]], "score": float(scores[i])} for i in seen]
        found.append({"boxes": [name | corner for name, corner in zip(named, corners, strict=True)]})
    return found


def to_original(boxes: NDArray[Any], sizes: NDArray[Any], spec: ModelSpec) -> NDArray[np.float64]:
    """Boxes (n, m, 4) in input pixels to pixels of originals of `sizes` (n, 2) width, height, clipped to them."""
    assert spec.image is not None, "a detector's specification has an image input"
    factors = np.array([image.scale(int(w), int(h), spec.image) for w, h in sizes], np.float64).reshape(-1, 2)
    limits = np.tile(np.asarray(sizes, np.float64).reshape(-1, 2), 2)[:, None]
    return np.clip(np.asarray(boxes, np.float64) / np.tile(factors, 2)[:, None], 0, limits)


def to_input(target: NDArray[Any], width: int, height: int, spec: ImageInput) -> NDArray[np.float32]:
    """One image's target (k, 5) class, x1, y1, x2, y2 with its boxes in input pixels."""
    across, down = image.scale(width, height, spec)
    return np.asarray(target * np.array([1, across, down, across, down]), np.float32)


def match(outputs: Arrays, truth: Truth, spec: ModelSpec) -> Matches:
    """Pair the graph's boxes with the objects of the truth, class by class, in pixels of the originals."""
    boxes = to_original(outputs["boxes"], truth.sizes, spec)
    return matched(boxes, outputs["scores"], outputs["classes"], truth.targets, len(spec.labels))


def scorer(outputs: Arrays, truth: Truth, spec: ModelSpec) -> Scorer:
    """Metrics as a function of image weights: map50, map50_95, precision and recall.

    The mean average precisions are over the classes that occur in the truth. Precision and recall are of the boxes from
    spec.score_threshold up, at an overlap of .5, all classes together.
    """
    matches = match(outputs, truth, spec)
    curves = [average_precision(matches, label) for label in range(len(spec.labels))]
    rates = _rates(matches, matches.score >= spec.score_threshold, matches.present.sum(1))

    def score(weights: Weights | None = None) -> dict[str, float]:
        found = np.array([curve(weights) for curve in curves])
        occurs = np.isfinite(found[:, 0])
        means = found[occurs].mean(0) if occurs.any() else np.full(len(IOUS), np.nan)
        return {"map50": float(means[0]), "map50_95": float(means.mean()), **rates(weights)}

    return score


def _rates(matches: Matches, counted: NDArray[np.bool_], present: NDArray[np.int64]) -> Scorer:
    """Precision and recall at an overlap of .5 of the boxes `counted` (d,) against `present` (n,) objects."""
    given = np.bincount(matches.image[counted], minlength=len(present)).astype(np.float64)
    hit = np.bincount(matches.image[counted & matches.hits[0]], minlength=len(present)).astype(np.float64)

    def score(weights: Weights | None = None) -> dict[str, float]:
        w = np.ones(len(present)) if weights is None else weights
        with np.errstate(invalid="ignore"):
            return {
                "precision": float(np.divide(hit @ w, given @ w)),
                "recall": float(np.divide(hit @ w, present @ w)),
            }

    return score


def per_class(outputs: Arrays, truth: Truth, spec: ModelSpec) -> dict[str, Scorer]:
    """For each class a scorer of its ap50, ap50_95, precision and recall."""
    matches = match(outputs, truth, spec)

    def of(label: int) -> Scorer:
        curve = average_precision(matches, label)
        counted = (matches.label == label) & (matches.score >= spec.score_threshold)
        rates = _rates(matches, counted, matches.present[:, label])

        def score(weights: Weights | None = None) -> dict[str, float]:
            found = curve(weights)
            return {"ap50": float(found[0]), "ap50_95": float(found.mean()), **rates(weights)}

        return score

    return {name: of(label) for label, name in enumerate(spec.labels)}


def best_threshold(outputs: Arrays, truth: Truth, spec: ModelSpec) -> float:
    """The score at which F1 is largest, at an overlap of .5 and all classes together; .25 where nothing was found."""
    matches = match(outputs, truth, spec)
    hits = np.cumsum(matches.hits[0])
    if not len(hits) or not hits[-1]:
        return 0.25
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + matches.present.sum())
    return float(matches.score[f1.argmax()])


def confidences(outputs: Arrays, truth: Truth, spec: ModelSpec) -> tuple[NDArray[Any], NDArray[Any]]:
    """The score of each answered box, and whether an object of its class is there (overlap .5): (d,), bool (d,)."""
    matches = match(outputs, truth, spec)
    answered = matches.score >= spec.score_threshold
    return matches.score[answered], matches.hits[0, answered]


def quality(outputs: Arrays, truth: Truth, spec: ModelSpec) -> NDArray[np.float64]:
    """Each image's F1 at an overlap of .5 (n,), of the boxes from spec.score_threshold up; 1 where neither box nor object was."""
    matches = match(outputs, truth, spec)
    answered = matches.score >= spec.score_threshold
    hit = np.bincount(matches.image[answered & matches.hits[0]], minlength=len(matches.present))
    both = np.bincount(matches.image[answered], minlength=len(matches.present)) + matches.present.sum(1)
    return np.where(both > 0, 2 * hit / np.maximum(both, 1), 1.0)


def ranked(outputs: Arrays, truth: Truth, spec: ModelSpec) -> dict[str, Ranked]:
    """Each class's boxes at an overlap of .5, for its precision-recall curve."""
    matches = match(outputs, truth, spec)
    mine = {name: matches.label == label for label, name in enumerate(spec.labels)}
    return {
        name: Ranked(matches.score[mine[name]], matches.hits[0, mine[name]], int(matches.present[:, label].sum()))
        for label, name in enumerate(spec.labels)
    }


def pairs(outputs: Arrays, truth: Truth, spec: ModelSpec) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """What was and what was said, int64 (k, 2), and the names they index; the last name stands for nothing.

    Answered boxes and objects are paired by overlap alone (.5, best score first), so that a wrong class shows.
    """
    boxes, nothing = to_original(outputs["boxes"], truth.sizes, spec), len(spec.labels)
    found: list[tuple[int, int]] = []
    for number, target in enumerate(truth.targets):
        given = np.flatnonzero(outputs["scores"][number] >= spec.score_threshold)
        shared = overlap(boxes[number, given], target[:, 1:])
        left = list(range(len(target)))
        for row, said in zip(shared, outputs["classes"][number, given], strict=True):
            best = max(left, key=lambda index: row[index], default=None)
            if best is None or row[best] < IOUS[0]:
                found.append((nothing, int(said)))
                continue
            left.remove(best)
            found.append((int(target[best, 0]), int(said)))
        found += [(int(target[index, 0]), nothing) for index in left]
    return np.array(found, np.int64).reshape(-1, 2), (*spec.labels, NOTHING)
