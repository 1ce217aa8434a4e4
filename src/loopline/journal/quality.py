"""How good one answer was, once its label is known."""

from __future__ import annotations

from typing import Any

import numpy as np

from loopline.tasks.average_precision import overlap

OVERLAP = 0.5
CORNERS = ("x1", "y1", "x2", "y2")


def of(prediction: dict[str, Any], label: Any) -> float:
    """1 for a right class and 0 for a wrong one; of boxes the F1 at an overlap of .5, as `tasks.detection.quality` has it."""
    if "boxes" not in prediction:
        return float(prediction["label"] == label)
    said = sorted(prediction["boxes"], key=lambda box: -box["score"])
    if not said and not label:
        return 1.0
    if not said or not label:
        return 0.0
    overlaps = overlap(_corners(said), _corners(label))
    free, hits = set(range(len(label))), 0
    for row, box in enumerate(said):
        fits = [k for k in free if label[k]["label"] == box["label"] and overlaps[row, k] >= OVERLAP]
        if fits:
            free.remove(max(fits, key=lambda k, row=row: overlaps[row, k]))  # type: ignore[misc]
            hits += 1
    return 2 * hits / (len(said) + len(label))


def _corners(boxes: list[dict[str, Any]]) -> Any:
    return np.array([[box[name] for name in CORNERS] for box in boxes], np.float64)
