"""The quality of one answer, given its label."""

from __future__ import annotations

from typing import Any

import numpy as np

from loopline.tasks.average_precision import overlap

OVERLAP = 0.5
CORNERS = ("x1", "y1", "x2", "y2")


def of(prediction: dict[str, Any], label: Any) -> float:
    """1 for the right class and 0 for a wrong one; for boxes the F1 score at an overlap of .5, as in `tasks.detection.quality`."""
    if "boxes" not in prediction:
        return float(prediction["label"] == label)
    predicted = sorted(prediction["boxes"], key=lambda box: -box["score"])
    if not predicted and not label:
        return 1.0
    if not predicted or not label:
        return 0.0
    overlaps = overlap(_corners(predicted), _corners(label))
    free, hits = set(range(len(label))), 0
    for row, box in enumerate(predicted):
        fits = [k for k in free if label[k]["label"] == box["label"] and overlaps[row, k] >= OVERLAP]
        if fits:
            free.remove(max(fits, key=lambda k, row=row: overlaps[row, k]))  # type: ignore[misc]
            hits += 1
    return 2 * hits / (len(predicted) + len(label))


def _corners(boxes: list[dict[str, Any]]) -> Any:
    return np.array([[box[name] for name in CORNERS] for box in boxes], np.float64)
