"""Measure how far a window of traffic is from the reference: in numpy the same figures as Prometheus' recording rules compute.

The *shift* of a signal is the size of the difference: the total variation between the shares of the bins in the window and in the
reference, which is the share of samples that would have to move, from 0 to 1. Its *evidence* is how certain the difference is: the
cube root of Pearson's chi-square for two samples. Unlike total variation, chi-square weighs rare bins, where corruptions appear.
The root is about normal (Wilson and Hilferty, PNAS 1931); it is standardised with its mean and standard deviation without drift.
The *score* of a model is the largest evidence of its signals divided by the threshold; over 1 it is an alarm.
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

WEIGHTS = 0.1, 0.5  # bounds of `weight`
WindowCounts = Mapping[str, NDArray[Any]]  # signal -> number of samples in each of its bins


def shift(counts: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the total variation, from 0 to 1, between two counts of the same bins; NaN for an empty window."""
    total = counts.sum()
    return float(np.abs(counts / total - reference / reference.sum()).sum() / 2) if total else float("nan")


def excess(counts: NDArray[Any], signal: Signal) -> float:
    """Return the shift that exceeds the one expected by chance, from 0 to 1."""
    noise = signal.noise**2 * (1 / float(counts.sum()) + 1 / sum(signal.counts))
    return sqrt(max(0.0, shift(counts, np.array(signal.counts)) ** 2 - noise))


def weight(n: NDArray[Any], samples: NDArray[Any]) -> NDArray[np.float64]:
    """Return the window's weight in the pooled shares: Pearson's n/(n + samples), clipped to `WEIGHTS`. Unclipped, a single sample
    in a bin that is rare on the other side could raise an alarm."""
    part: NDArray[np.float64] = np.clip(n / (n + samples), *WEIGHTS)
    return part


def evidence(counts: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cube root of the chi-square between two counts of the same bins. Bins that are empty in both count nothing.

    counts: (bins,), or (bins, windows) for several windows. reference: likewise, or (bins, 1) to share one between all windows.
    """
    n, m = counts.sum(0), reference.sum(0)
    part, q = weight(n, m), reference / m
    # The smallest positive number avoids 0 / 0 in a bin that is empty in both.
    common = counts * (part / n) + ((1 - part) * q + np.finfo(np.float64).tiny)
    chi_square = (np.square(counts / n - q) / common).sum(0) / (1 / n + 1 / m)
    cube_root: NDArray[np.float64] = np.cbrt(chi_square)
    return cube_root


def threshold_terms(n: float, samples: int) -> tuple[float, float, float]:
    """Return the terms of a threshold: 1; 1/n, because the evidence of few samples is skewed; and n/(n + samples), because in a
    window that is large beside the reference all evaluations of a stream share the reference's own error."""
    return 1.0, 1 / n, n / (n + samples)


def threshold(n: float, samples: int, reference: Reference) -> float:
    """Return the standardised evidence above which n samples raise an alarm, with `samples` rows in the reference."""
    return sum(a * b for a, b in zip(threshold_terms(n, samples), reference.threshold, strict=True))


def score(counts: NDArray[Any], signal: Signal, reference: Reference) -> float:
    """Return the signal's standardised evidence divided by the threshold; NaN if there are too few samples for a verdict."""
    n = float(counts.sum())
    if n < reference.least:
        return float("nan")
    samples = sum(signal.counts)
    standard = float(evidence(counts, np.array(signal.counts)) - signal.mean) / signal.sd
    return standard / threshold(n, samples, reference)


@dataclass(frozen=True)
class Mover:
    """One signal of a window. value and before: approximate means in the window and in the reference; None for classes."""

    signal: str
    n: int
    shift: float
    score: float
    value: float | None
    before: float | None


def movers(counts: WindowCounts, reference: Reference) -> list[Mover]:
    """Return every signal that has a verdict, the largest score first."""
    signals = []
    for name, row in counts.items():
        if name not in reference.signals:
            continue
        signal = reference.signals[name]
        value = score(row, signal, reference)
        if not np.isnan(value):
            means = (None, None) if name == CLASS else (mean(row, signal), mean(np.array(signal.counts), signal))
            signals.append(Mover(name, int(row.sum()), shift(row, np.array(signal.counts)), value, *means))
    return sorted(signals, key=lambda mover: -mover.score)


def mean(counts: NDArray[Any], signal: Signal) -> float | None:
    """Return the approximate mean of the values, from the middles of their bins; None if all are NaN."""
    total = counts[:-1].sum()
    return float(counts[:-1] @ np.array(signal.middles) / total) if total else None
