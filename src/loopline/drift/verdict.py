"""The verdict on a window's counts: is there drift, how much harm does it do, and does a new mix of the same classes explain it?"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, sqrt

import numpy as np

from loopline.drift import harm, statistic
from loopline.drift.reference import Reference
from loopline.drift.statistic import Mover, WindowCounts
from loopline.tasks.signals import CLASS


@dataclass(frozen=True)
class Mix:
    """The shares of the classes.

    before: on the reference. predicted: of the predictions in the window. estimated: of the true classes in the window if nothing
    else changed. further: signals that moved more than a new mix of the same classes can move them. loss: estimated loss of quality
    that exceeds the loss by the new mix alone.
    """

    before: tuple[float, ...]
    predicted: tuple[float, ...]
    estimated: tuple[float, ...]
    further: tuple[Mover, ...]
    loss: float


@dataclass(frozen=True)
class Finding:
    """The verdict on a window.

    n: samples of the signal that has most. silent: signal without a verdict -> number of its samples.
    """

    n: float
    movers: list[Mover]
    silent: dict[str, float]
    harm: harm.Harm | None
    mix: Mix | None

    @property
    def drifted(self) -> bool:
        """Whether the largest score is an alarm."""
        return bool(self.movers) and self.movers[0].score > 1

    @property
    def harmful(self) -> bool:
        """Whether the estimated loss is over its limit."""
        return self.harm is not None and self.harm.harmful


def judge(counts: WindowCounts, reference: Reference) -> Finding:
    """Return the verdict on the counts of a window."""
    movers = statistic.movers(counts, reference)
    sums = {name: float(counts[name].sum()) if name in counts else 0.0 for name in reference.signals}
    silent = {name: n for name, n in sums.items() if n < reference.least}
    cost = harm.judge(counts, reference) if movers else None
    return Finding(
        n=max(sums.values()),
        movers=movers,
        silent=silent,
        harm=cost,
        mix=_mix(counts, movers, cost.loss if cost else None, reference),
    )


def _mix(counts: WindowCounts, movers: list[Mover], loss: float | None, reference: Reference) -> Mix | None:
    """Return the mix if the predicted classes moved, else None.

    Under label shift each signal is a mixture of the same parts as before. It therefore moves no further than the shares of the
    classes, and the recall of each class stays the same.
    """
    moved = any(mover.signal == CLASS and mover.score > 1 for mover in movers)
    if not moved or not reference.labels.confusion or not counts[CLASS][:-1].sum():
        return None
    confusion, predicted = np.array(reference.labels.confusion, float), counts[CLASS][:-1]
    before, now = confusion.sum(0) / confusion.sum(), harm.label_shift(confusion, predicted)
    limit = float(np.abs(now - before).sum() / 2)

    def chance(mover: Mover) -> float:
        signal = reference.signals[mover.signal]
        return signal.noise * sqrt(1 / mover.n + 1 / sum(signal.counts))

    others = [mover for mover in movers if mover.signal != CLASS and mover.score > 1]
    recall = np.diag(confusion) / np.maximum(confusion.sum(0), 1)
    return Mix(
        before=tuple(before),
        predicted=tuple(predicted / predicted.sum()),
        estimated=tuple(now),
        further=tuple(mover for mover in others if mover.shift > hypot(limit, chance(mover))),
        loss=(loss or 0.0) - float(recall @ (before - now)),
    )


def sentence(finding: Finding, reference: Reference) -> str:
    """Return the verdict with its numbers in one sentence."""
    if not finding.movers:
        return f"No verdict: {finding.n:.0f} samples in the window, {reference.least} are needed."
    first, quality, promise, cost = finding.movers[0], reference.quality, reference.promise, finding.harm
    head = "No drift"
    if finding.drifted:
        head = "Drift, and the model is worse on it" if finding.harmful else "Drift, and no harm is estimated"
    estimated = ""
    if cost:
        level = f"{quality.value - cost.loss:.3f} by {cost.way}"
        estimated = f"; {quality.metric} is estimated at {level}, compared with {quality.value:.3f} on the reference"
    return (
        f"{head}: the score is {first.score:.2f} from {finding.n:.0f} samples (an alarm is over 1){estimated}; without drift, "
        f"{100 * promise['false_alarms']:g} % of streams of {promise['windows']:g} windows would raise an alarm."
    )


def change(points: float) -> str:
    """Return a change of quality, given as a share, in percentage points: `loses 4.5 points`."""
    return f"{'gains' if points > 0 else 'loses'} {100 * abs(points):.1f} points"


def figure(value: float | None, digits: int = 4) -> str:
    """Format a mean for people, with a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
