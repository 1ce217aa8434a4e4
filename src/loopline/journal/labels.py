"""Choose the samples that are most worth a label, and the labels that a model may learn from. Numpy only, no files.

The choice alternates between three criteria: low confidence, distance from the reference, and difference from the samples chosen
already (k-center greedy, Sener and Savarese, Active learning for convolutional neural networks, ICLR 2018). Each choice is
made among the predicted classes chosen least often, so that no class is left out.
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

# A source's share of the labels is bounded only if other sources gave at least this share.
SEVERAL = 0.1


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Which labels to trust.

    max_share: the largest share of a batch's labels from one source, if the others give at least a tenth. known: the allowed
    classes; empty allows any.
    """

    max_share: float = 0.6
    known: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checked:
    """Entries whose label may be used. refused: reason -> number of other entries."""

    entries: list[Entry]
    refused: dict[str, int]


def worth(entries: Sequence[Entry], count: int) -> list[Entry]:
    """At most `count` of the entries without a label, the most useful first."""
    candidates = [entry for entry in entries if entry.label is None and entry.input is not None]
    if not candidates:
        return []
    points = _points(candidates)
    doubt = np.array([_doubt(entry) for entry in candidates])
    outside = np.array([entry.reason == "drifted" for entry in candidates], float)
    classes = [_predicted(entry) for entry in candidates]
    chosen: list[int] = []
    distance = np.full(len(candidates), np.inf)
    taken: Counter[str] = Counter()
    while len(chosen) < min(count, len(candidates)):
        unchosen = np.ones(len(candidates), bool)
        unchosen[chosen] = False
        least = min(taken[classes[i]] for i in np.flatnonzero(unchosen))
        eligible = unchosen & np.array([taken[name] == least for name in classes])
        score = (doubt, outside + doubt / 2, np.where(np.isfinite(distance), distance, doubt))[len(chosen) % 3]
        best = int(np.flatnonzero(eligible)[np.argmax(score[eligible])])
        chosen.append(best)
        taken[classes[best]] += 1
        distance = np.minimum(distance, np.linalg.norm(points - points[best], axis=1))
    return [candidates[i] for i in chosen]


def checked(entries: Sequence[Entry], conflicts: dict[str, dict[str, Any]], trust: Trust) -> Checked:
    """Choose the labelled entries that a model may learn from.

    conflicts: sample id -> source -> label, for samples on whose label sources disagree. Of a source that exceeds its share only
    the oldest entries stay, so that one wrong or hostile source cannot decide what the model learns.
    """
    refused: Counter[str] = Counter()
    accepted = []
    for entry in entries:
        names = [entry.label] if isinstance(entry.label, str) else [box["label"] for box in entry.label or []]
        if entry.id in conflicts:
            refused["sources do not agree"] += 1
        elif entry.input is None:
            refused["its input was not kept"] += 1
        elif isinstance(entry.label, str) == ("boxes" in entry.prediction):
            refused["the label is not of the kind that the model predicts"] += 1
        elif trust.known and (unknown := sorted(set(names) - set(trust.known))):
            refused[f"unknown class {unknown[0]!r}"] += 1
        else:
            accepted.append(entry)
    by_source = Counter(entry.source for entry in accepted)
    if len(by_source) > 1:
        largest, count = by_source.most_common(1)[0]
        others = len(accepted) - count
        # A few stray labels of another source must not discard nearly all labels of the main one
        share = 1.0 if others < SEVERAL * len(accepted) else trust.max_share
        allowed = floor(share * others / (1 - share) + 1e-9) if share < 1 else count
        if count > allowed:
            refused[f"more than {trust.max_share:.0%} of the labels are from {largest!r}"] += count - allowed
            position = iter(range(count))
            accepted = [entry for entry in accepted if entry.source != largest or next(position) < allowed]
    return Checked(accepted, dict(refused))


def _doubt(entry: Entry) -> float:
    """1 minus the confidence; for boxes, 1 minus the highest score."""
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
    """The signals scaled to mean 0 and standard deviation 1: (n, signals). A missing signal counts as 0 before scaling."""
    names = sorted({name for entry in entries for name in entry.signals})
    table = np.nan_to_num(np.array([[entry.signals.get(name, np.nan) for name in names] for entry in entries], float))
    spread = table.std(0)
    return np.asarray((table - table.mean(0)) / np.where(spread > 0, spread, 1), np.float64)
