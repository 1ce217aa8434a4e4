"""Object detection: boxes with a class and a score. Numpy only.

The graph answers with `boxes` (n, m, 4) x1, y1, x2, y2 in input pixels, `scores` (n, m) in falling order, 0 for padding,
and `classes` (n, m). Everything here is measured in pixels of the upright original.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.errors import LooplineError
from loopline.lib.arrays import Arrays
from loopline.tasks import image
from loopline.tasks.average_precision import IOUS, Matches, average_precision, matched, overlap
from loopline.tasks.base import Json, Task, class_name, record
from loopline.tasks.bootstrap import Scorer, Weights
from loopline.tasks.curves import Ranked
from loopline.tasks.signals import CLASS, Signals
from loopline.tasks.spec import ImageInput, ModelSpec, Truth

NOTHING = "(nothing)"  # in the confusion table: no object under a box, or no box on an object
CORNERS = ("x1", "y1", "x2", "y2")
MOST_BOXES = 1000  # in one feedback label


class Detection(Task):
    """A box, a class and a score for each object in an image."""

    name = "detection"
    content = "image"
    truth = "boxes"
    headline = "map50"
    quality_name = "f1"  # an mAP is not a mean over images
    confidence = "mean_score"
    question = "What is where in this image?"
    use = "Finds objects of {k} kinds in an image: a box, a class and a score for each."
    limit = "It finds nothing but these kinds of objects. Boxes that overlap much are taken for one object."

    def targets(self, truths: Sequence[Any], labels: tuple[str, ...]) -> list[NDArray[np.float32]]:
        """Return for each image float32 (m, 5): class index, x1, y1, x2, y2 in pixels of the upright image."""
        index = {label: number for number, label in enumerate(labels)}
        rows = [[(index[box["label"]], *(box[corner] for corner in CORNERS)) for box in boxes] for boxes in truths]
        return [np.array(boxes, np.float32).reshape(-1, 5) for boxes in rows]

    def answers(self, outputs: Arrays, spec: ModelSpec, sizes: NDArray[Any]) -> list[dict[str, Any]]:
        """Return for each image `{"boxes": [{"label", "score", "x1", "y1", "x2", "y2"}, ...]}`, best first.

        Boxes under spec.score_threshold are left out.
        sizes: (n, 2) width, height of the upright originals. Boxes are in their pixels and clipped to them.
        """
        placed = to_original(outputs["boxes"], sizes, spec)
        results = []
        for boxes, scores, classes in zip(placed, outputs["scores"], outputs["classes"], strict=True):
            seen = np.flatnonzero(scores >= spec.score_threshold)
            corners = [dict(zip(("x1", "y1", "x2", "y2"), map(float, boxes[i]), strict=True)) for i in seen]
            named = [{"label": spec.labels[classes[i]], "score": float(scores[i])} for i in seen]
            results.append({"boxes": [name | corner for name, corner in zip(named, corners, strict=True)]})
        return results

    def batch_columns(self) -> Mapping[str, Any]:
        """Return the column of boxes."""
        return {"boxes": [{"label": "string"} | dict.fromkeys(("score", *CORNERS), "float32")]}

    def answer_schema(self, spec: ModelSpec) -> Json:
        """Return the schema of `boxes`."""
        share, side = {"type": "number", "minimum": 0, "maximum": 1.000001}, {"type": "number", "minimum": 0}
        box = record({"label": {"enum": list(spec.labels)}, "score": share} | dict.fromkeys(CORNERS, side))
        return record({"boxes": {"type": "array", "items": box}})

    def label_schema(self, spec: ModelSpec) -> Json:
        """Return the schema of boxes like those of answers. A score is allowed and ignored."""
        corners = {corner: {"type": "number"} for corner in CORNERS}
        box = record({"label": {"enum": list(spec.labels)}, "score": {"type": "number"}, **corners})
        example = {"label": spec.labels[0], **dict(zip(CORNERS, (1, 1, 9, 9), strict=True))}
        return {"type": "array", "items": box | {"required": ["label", *CORNERS]}, "example": [example]}

    def check_label(self, label: Any, spec: ModelSpec, model: str) -> list[Json]:
        """Return the boxes without their scores. Raises LooplineError with the reason if one is invalid."""
        if not isinstance(label, list) or len(label) > MOST_BOXES or not all(isinstance(box, dict) for box in label):
            raise LooplineError(f"label must be a list of at most {MOST_BOXES} boxes")
        boxes = []
        for box in label:
            corners = [float(c) for name in CORNERS if type(c := box.get(name)) in (int, float) and math.isfinite(c)]
            if len(corners) < len(CORNERS):
                raise LooplineError("each box needs x1, y1, x2, y2 in pixels of the image")
            x1, y1, x2, y2 = corners
            if not (x1 < x2 and y1 < y2):
                raise LooplineError("x1 must be less than x2, and y1 less than y2")
            boxes.append({"label": class_name(box.get("label"), spec, model), "x1": x1, "y1": y1, "x2": x2, "y2": y2})
        return boxes

    def scorer(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> Scorer:
        """Return the metrics as a function of image weights: map50, map50_95, precision and recall.

        The mean average precisions are over the classes that occur in the truth. Precision and recall count the boxes from
        spec.score_threshold up, at an overlap of .5, all classes together.
        """
        matches = match(outputs, truth, spec)
        curves = [average_precision(matches, label) for label in range(len(spec.labels))]
        rates = _rates(matches, matches.score >= spec.score_threshold, matches.present.sum(1))

        def score(weights: Weights | None = None) -> dict[str, float]:
            precisions = np.array([curve(weights) for curve in curves])
            occurs = np.isfinite(precisions[:, 0])
            means = precisions[occurs].mean(0) if occurs.any() else np.full(len(IOUS), np.nan)
            return {"map50": float(means[0]), "map50_95": float(means.mean()), **rates(weights)}

        return score

    def per_class(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> dict[str, Scorer]:
        """Return for each class a scorer of its ap50, ap50_95, precision and recall."""
        matches = match(outputs, truth, spec)

        def of(label: int) -> Scorer:
            curve = average_precision(matches, label)
            counted = (matches.label == label) & (matches.score >= spec.score_threshold)
            rates = _rates(matches, counted, matches.present[:, label])

            def score(weights: Weights | None = None) -> dict[str, float]:
                precisions = curve(weights)
                return {"ap50": float(precisions[0]), "ap50_95": float(precisions.mean()), **rates(weights)}

            return score

        return {name: of(label) for label, name in enumerate(spec.labels)}

    def confidences(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return each answered box's score (d,), and whether it hits an object of its class, at an overlap of .5, bool (d,)."""
        matches = match(outputs, truth, spec)
        answered = matches.score >= spec.score_threshold
        return matches.score[answered], matches.hits[0, answered]

    def quality(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> NDArray[np.float64]:
        """Return each image's F1 (n,) at an overlap of .5, of boxes from spec.score_threshold up; 1 without box and object."""
        matches = match(outputs, truth, spec)
        answered = matches.score >= spec.score_threshold
        hit = np.bincount(matches.image[answered & matches.hits[0]], minlength=len(matches.present))
        both = np.bincount(matches.image[answered], minlength=len(matches.present)) + matches.present.sum(1)
        return np.where(both > 0, 2 * hit / np.maximum(both, 1), 1.0)

    def ranked(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> dict[str, Ranked]:
        """Return each class's boxes at an overlap of .5, for its precision-recall curve."""
        matches = match(outputs, truth, spec)
        of_class = {name: matches.label == label for label, name in enumerate(spec.labels)}
        return {
            name: Ranked(
                matches.score[of_class[name]], matches.hits[0, of_class[name]], int(matches.present[:, label].sum())
            )
            for label, name in enumerate(spec.labels)
        }

    def pairs(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return true and predicted class indices int64 (k, 2), and the names that they index, the last of them NOTHING.

        Answered boxes and objects are paired by overlap alone (.5, best score first), so that a wrong class shows.
        """
        boxes, nothing = to_original(outputs["boxes"], truth.sizes, spec), len(spec.labels)
        rows: list[tuple[int, int]] = []
        for number, target in enumerate(truth.targets):
            answered = np.flatnonzero(outputs["scores"][number] >= spec.score_threshold)
            shared = overlap(boxes[number, answered], target[:, 1:])
            free = list(range(len(target)))
            for row, label in zip(shared, outputs["classes"][number, answered], strict=True):
                best = max(free, key=lambda index: row[index], default=None)
                if best is None or row[best] < IOUS[0]:
                    rows.append((nothing, int(label)))
                    continue
                free.remove(best)
                rows.append((int(target[best, 0]), int(label)))
            rows += [(int(target[index, 0]), nothing) for index in free]
        return np.array(rows, np.int64).reshape(-1, 2), (*spec.labels, NOTHING)

    def output_signals(self, outputs: Arrays, spec: ModelSpec) -> Signals:
        """Return signals of the answered boxes. predicted_class is that of the best box; without a box it is NaN."""
        scores, boxes = outputs["scores"].astype(np.float64), outputs["boxes"].astype(np.float64)
        seen = scores >= spec.score_threshold
        count = seen.sum(1)
        areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        with np.errstate(invalid="ignore"):  # an image without a box gives NaN, which has a bin of its own
            return {
                CLASS: np.where(seen[:, 0], outputs["classes"][:, 0], np.nan).astype(np.float64),
                "boxes": count.astype(np.float64),
                "mean_score": (scores * seen).sum(1) / count,
                "mean_box_area": (areas * seen).sum(1) / count,
                "top_score": scores[:, 0],
            }


def to_original(boxes: NDArray[Any], sizes: NDArray[Any], spec: ModelSpec) -> NDArray[np.float64]:
    """Convert boxes (n, m, 4) from input pixels to pixels of originals of `sizes` (n, 2) width, height; clip them to those."""
    assert spec.image is not None, "a detector's specification has an image input"
    factors = np.array([image.scale(int(w), int(h), spec.image) for w, h in sizes], np.float64).reshape(-1, 2)
    limits = np.tile(np.asarray(sizes, np.float64).reshape(-1, 2), 2)[:, None]
    return np.clip(np.asarray(boxes, np.float64) / np.tile(factors, 2)[:, None], 0, limits)


def to_input(target: NDArray[Any], width: int, height: int, spec: ImageInput) -> NDArray[np.float32]:
    """Convert the boxes of one image's target (k, 5), class, x1, y1, x2, y2, to input pixels."""
    across, down = image.scale(width, height, spec)
    return np.asarray(target * np.array([1, across, down, across, down]), np.float32)


def match(outputs: Arrays, truth: Truth, spec: ModelSpec) -> Matches:
    """Pair the graph's boxes with the objects of the truth, class by class, in pixels of the originals."""
    boxes = to_original(outputs["boxes"], truth.sizes, spec)
    return matched(boxes, outputs["scores"], outputs["classes"], truth.targets, len(spec.labels))


def _rates(matches: Matches, counted: NDArray[np.bool_], present: NDArray[np.int64]) -> Scorer:
    """Return a scorer of precision and recall of the boxes `counted` (d,) at an overlap of .5. present: objects per image (n,)."""
    answered = np.bincount(matches.image[counted], minlength=len(present)).astype(np.float64)
    hit = np.bincount(matches.image[counted & matches.hits[0]], minlength=len(present)).astype(np.float64)

    def score(weights: Weights | None = None) -> dict[str, float]:
        w = np.ones(len(present)) if weights is None else weights
        with np.errstate(invalid="ignore"):
            return {
                "precision": float(np.divide(hit @ w, answered @ w)),
                "recall": float(np.divide(hit @ w, present @ w)),
            }

    return score


def best_threshold(outputs: Arrays, truth: Truth, spec: ModelSpec) -> float:
    """Return the score at which F1 is largest, at an overlap of .5 and over all classes together; .25 without any hit."""
    matches = match(outputs, truth, spec)
    hits = np.cumsum(matches.hits[0])
    if not len(hits) or not hits[-1]:
        return 0.25
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + matches.present.sum())
    return float(matches.score[f1.argmax()])


TASK = Detection()
