"""How far is a window of traffic from the reference? The same figures as Prometheus' recording rules have, in numpy.

A signal's *shift* is the total variation between its shares of bins and the reference's: the share of samples that would have to
move, from 0 to 1. It says how large a difference is. Its *evidence* says how sure: the cube root of Pearson's chi-square for two
samples, which weighs rare bins, where corruptions go, as total variation does not. The root makes it about normal (Wilson and
Hilferty, PNAS 1931); it is standardised with its mean and standard deviation without drift. The model's *score* is the largest
over its signals, in thresholds: over 1 it is an alarm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.drift.reference import Reference, Signal
from loopline.tasks.signals import CLASS

WEIGHTS = 0.1, 0.5
WindowCounts = Mapping[str, NDArray[Any]]  # signal -> how many samples in each of its bins


def shift(counts: NDArray[Any], reference: NDArray[Any]) -> float:
    """Total variation, 0 to 1, between two counts of the same bins. Of an empty window it is NaN."""
    total = counts.sum()
    return float(np.abs(counts / total - reference / reference.sum()).sum() / 2) if total else float("nan")


def excess(counts: NDArray[Any], signal: Signal) -> float:
    """The shift beyond what chance alone would show."""
    noise = signal.noise**2 * (1 / float(counts.sum()) + 1 / sum(signal.counts))
    return sqrt(max(0.0, shift(counts, np.array(signal.counts)) ** 2 - noise))


def weight(n: NDArray[Any], samples: NDArray[Any]) -> NDArray[np.float64]:
    """The window's part in the shares that both have in common. Pearson's is n/(n + samples); within bounds no single sample in a
    bin that is rare on the other side can raise an alarm."""
    part: NDArray[np.float64] = np.clip(n / (n + samples), *WEIGHTS)
    return part


def evidence(counts: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """Cube root of the chi-square between two counts of the same bins; a bin that is empty in both says nothing.

    counts: (bins,), or of several windows (bins, windows). reference: likewise, or (bins, 1) for all windows.
    """
    n, m = counts.sum(0), reference.sum(0)
    part, q = weight(n, m), reference / m
    # The least positive number keeps a bin that both have empty from 0 / 0
    common = counts * (part / n) + ((1 - part) * q + np.finfo(np.float64).tiny)
    chi_square = (np.square(counts / n - q) / common).sum(0) / (1 / n + 1 / m)
    cube_root: NDArray[np.float64] = np.cbrt(chi_square)
    return cube_root


def threshold_terms(n: float, samples: int) -> tuple[float, float, float]:
    """What a threshold is made of: 1; 1/n, for few samples are skewed; and n/(n + samples), for in a window that is large beside the
    reference all evaluations of a stream share the reference's own error."""
    return 1.0, 1 / n, n / (n + samples)


def threshold(n: float, samples: int, reference: Reference) -> float:
    """The standardised evidence of n samples that is an alarm, beside `samples` in the reference."""
    return sum(a * b for a, b in zip(threshold_terms(n, samples), reference.threshold, strict=True))


def score(counts: NDArray[Any], signal: Signal, reference: Reference) -> float:
    """The signal's standardised evidence in thresholds. NaN under the least number of samples: no verdict."""
    n = float(counts.sum())
    if n < reference.least:
        return float("nan")
    samples = sum(signal.counts)
    standard = float(evidence(counts, np.array(signal.counts)) - signal.mean) / signal.sd
    return standard / threshold(n, samples, reference)


@dataclass(frozen=True)
class Mover:
    """One signal of a window. value and before: about the mean in the window and in the reference; None for classes."""

    signal: str
    n: int
    shift: float
    score: float
    value: float | None
    before: float | None


def movers(counts: WindowCounts, reference: Reference) -> list[Mover]:
    """Every signal that has a verdict, the largest score first."""
    found = []
    for name, row in counts.items():
        if name not in reference.signals:
            continue
        signal = reference.signals[name]
        value = score(row, signal, reference)
        if not np.isnan(value):
            means = (None, None) if name == CLASS else (mean(row, signal), mean(np.array(signal.counts), signal))
            found.append(Mover(name, int(row.sum()), shift(row, np.array(signal.counts)), value, *means))
    return sorted(found, key=lambda mover: -mover.score)


def mean(counts: NDArray[Any], signal: Signal) -> float | None:
    """About the mean of the values, from the middles of their bins; None where all are NaN."""
    total = counts[:-1].sum()
    return float(counts[:-1] @ np.array(signal.middles) / total) if total else None
