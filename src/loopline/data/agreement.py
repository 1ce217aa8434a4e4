"""Decide whether two annotations of one sample agree, since two annotators never draw a box alike to the pixel."""

from __future__ import annotations

from collections.abc import Sequence

from loopline.data.manifest import Box
from loopline.data.raw import RawBox

OVERLAP = 0.5  # least intersection over union of two boxes of one object, as in PASCAL VOC and COCO's AP50


def boxes_agree(first: Sequence[RawBox | Box], second: Sequence[RawBox | Box]) -> bool:
    """Whether the boxes form pairs of the same class that overlap by at least OVERLAP, with no box left over."""
    if len(first) != len(second):
        return False
    pairs = sorted(
        ((overlap(a, b), i, j) for i, a in enumerate(first) for j, b in enumerate(second) if a.label == b.label),
        reverse=True,
    )
    left, right = set(range(len(first))), set(range(len(second)))
    for share, i, j in pairs:
        if share >= OVERLAP and i in left and j in right:
            left.remove(i)
            right.remove(j)
    return not left


def overlap(a: RawBox | Box, b: RawBox | Box) -> float:
    """Intersection over union of two boxes, 0 to 1."""
    across, down = min(a.x2, b.x2) - max(a.x1, b.x1), min(a.y2, b.y2) - max(a.y1, b.y1)
    shared = max(across, 0.0) * max(down, 0.0)
    union = (a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1) - shared
    return shared / union if union > 0 else 0.0
