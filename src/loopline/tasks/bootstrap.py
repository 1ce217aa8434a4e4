"""Confidence intervals by resampling samples with replacement. Numpy only.

Percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). A resample is a vector of counts,
one for each sample, so a metric that is not a mean (mAP) is resampled correctly too. Paired: both models see the same counts.

Where all resamples agree, as they do without a single error, percentiles would give an interval without width. There the interval
is Wilson's (Wilson, JASA 1927), for the number of samples that the figure rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

Z = 1.96  # standard deviations on each side of a 95 % interval
NO_WIDTH = 1e-9  # a smaller width is a rounding error
Weights = NDArray[np.float64]
Scorer = Callable[[Weights | None], dict[str, float]]


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval. dropped: resamples that could not give the figure, such as a recall without an object."""

    value: float
    low: float
    high: float
    dropped: int = 0

    def rounded(self) -> dict[str, float]:
        """Return the figures for a report, with four decimals so that rounding errors do not show. `dropped` is left out if 0."""
        figures = {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}
        return figures | ({"dropped": self.dropped} if self.dropped else {})


def _counts(n: int, resamples: int, seed: int) -> Iterator[Weights]:
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(generator.integers(0, n, n), minlength=n).astype(np.float64)


def _interval(value: float, draws: list[float], support: int) -> Interval:
    finite = np.array(draws)[np.isfinite(draws)]
    dropped = len(draws) - len(finite)
    if not finite.size:
        return Interval(value, float("nan"), float("nan"), dropped)
    low, high = map(float, np.quantile(finite, [0.025, 0.975]))
    if high - low < NO_WIDTH and abs(value) <= 1:
        low, high = sorted(np.copysign(wilson(abs(value), support), value).tolist())
    return Interval(value, low, high, dropped)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of n samples."""
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def intervals(scorer: Scorer, n: int, *, resamples: int, seed: int, support: int | None = None) -> dict[str, Interval]:
    """Return the 95 % interval of every metric that `scorer` gives over `n` samples.

    support: how many of the samples the metrics rest on (default: n).
    """
    point = scorer(None)
    draws: dict[str, list[float]] = {name: [] for name in point}
    for counts in _counts(n, resamples, seed):
        for name, value in scorer(counts).items():
            draws[name].append(value)
    return {name: _interval(value, draws[name], support or n) for name, value in point.items()}


def paired(a: Scorer, b: Scorer, n: int, *, metric: str, resamples: int, seed: int) -> Interval:
    """Return the 95 % interval of `metric` of `a` minus that of `b`, both measured on the same `n` samples.

    Only models that answer alike have an interval without width: they differ by exactly 0.
    """
    point = a(None)[metric] - b(None)[metric]
    draws = [a(counts)[metric] - b(counts)[metric] for counts in _counts(n, resamples, seed)]
    return _interval(point, draws, n) if any(draws) else Interval(point, point, point)
