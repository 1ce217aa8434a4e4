"""Labels: which samples are worth one, and which labels may be trusted. Numpy only, no files.

Selection takes turns between what the model is unsure of, what lies outside its reference, and what differs most from what was
chosen already (k-center greedy, Sener and Savarese, Active learning for convolutional neural networks, ICLR 2018), each in
turn over the predicted classes, so that none is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.journal.reader import Entry

SEVERAL = 0.1  # of the labels must be from others for a source's share to be bounded


@dataclass(frozen=True, kw_only=True)
class Trust:
    """max_share: of a batch's labels, the most that one source may give, where others give a tenth. known: classes; empty for any."""

    max_share: float = 0.6
    known: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checked:
    """Entries whose label may be used, and why others may not: reason -> how many."""

    entries: list[Entry]
    refused: dict[str, int]


def worth(entries: Sequence[Entry], count: int) -> list[Entry]:
    """At most `count` of the entries without a label, the most useful first."""
    left = [entry for entry in entries if entry.label is None and entry.input is not None]
    if not left:
        return []
    points = _points(left)
    doubt = np.array([_doubt(entry) for entry in left])
    strange = np.array([entry.reason == "drifted" for entry in left], float)
    classes = [_predicted(entry) for entry in left]
    chosen: list[int] = []
    far = np.full(len(left), np.inf)
    taken: Counter[str] = Counter()
    while len(chosen) < min(count, len(left)):
        free = np.ones(len(left), bool)
        free[chosen] = False
        least = min(taken[classes[i]] for i in np.flatnonzero(free))
        fair = free & np.array([taken[name] == least for name in classes])
        figure = (doubt, strange + doubt / 2, np.where(np.isfinite(far), far, doubt))[len(chosen) % 3]
        best = int(np.flatnonzero(fair)[np.argmax(figure[fair])])
        chosen.append(best)
        taken[classes[best]] += 1
        far = np.minimum(far, np.linalg.norm(points - points[best], axis=1))
    return [left[i] for i in chosen]


def checked(entries: Sequence[Entry], conflicts: dict[str, dict[str, Any]], trust: Trust) -> Checked:
    """Those of the labelled entries that a model may learn from.

    conflicts: labels by source of the samples whose sources do not agree, by id. One source's labels over its share are left out, the
    oldest stay: a single source that is wrong, or hostile, does not decide what the model learns.
    """
    refused: Counter[str] = Counter()
    found = []
    for entry in entries:
        names = [entry.label] if isinstance(entry.label, str) else [box["label"] for box in entry.label or []]
        if entry.id in conflicts:
            refused["sources do not agree"] += 1
        elif entry.input is None:
            refused["its input was not kept"] += 1
        elif isinstance(entry.label, str) == ("boxes" in entry.prediction):
            refused["a label of another kind"] += 1
        elif trust.known and (unknown := sorted(set(names) - set(trust.known))):
            refused[f"unknown class {unknown[0]!r}"] += 1
        else:
            found.append(entry)
    by_source = Counter(entry.source for entry in found)
    if len(by_source) > 1:
        top, count = by_source.most_common(1)[0]
        others = len(found) - count
        # A stray label does not throw away the others
        share = 1.0 if others < SEVERAL * len(found) else trust.max_share
        allowed = floor(share * others / (1 - share) + 1e-9) if share < 1 else count
        if count > allowed:
            refused[f"more than {trust.max_share:.0%} of the labels are from {top!r}"] += count - allowed
            own = iter(range(count))
            found = [entry for entry in found if entry.source != top or next(own) < allowed]
    return Checked(found, dict(refused))


def _doubt(entry: Entry) -> float:
    """1 minus the confidence; of boxes the doubt of the best one."""
    boxes = entry.prediction.get("boxes")
    if boxes is None:
        return 1 - float(entry.prediction.get("probability", 0))
    return 1 - max((float(box["score"]) for box in boxes), default=0.0)


def _predicted(entry: Entry) -> str:
    boxes = entry.prediction.get("boxes")
    if boxes is None:
        return str(entry.prediction.get("label"))
    return str(max(boxes, key=lambda box: box["score"])["label"]) if boxes else ""


def _points(entries: Sequence[Entry]) -> NDArray[np.float64]:
    """Signals, each with mean 0 and standard deviation 1: (n, signals)."""
    names = sorted({name for entry in entries for name in entry.signals})
    table = np.nan_to_num(np.array([[entry.signals.get(name, np.nan) for name in names] for entry in entries], float))
    spread = table.std(0)
    return np.asarray((table - table.mean(0)) / np.where(spread > 0, spread, 1), np.float64)
