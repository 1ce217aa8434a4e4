"""Confidence intervals by resampling samples with replacement. Numpy only.

Percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). A resample is a vector of counts,
one a sample, so that a metric that is no mean (mAP) is resampled as it should be. Paired: both models see the same counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
Scorer = Callable[[Weights | None], dict[str, float]]


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def rounded(self) -> dict[str, float]:
        """For a report: four decimals, so that the last bits of a sum do not show."""
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


def _counts(n: int, resamples: int, seed: int) -> Iterator[Weights]:
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(generator.integers(0, n, n), minlength=n).astype(np.float64)


def _interval(value: float, draws: list[float]) -> Interval:
    finite = np.array(draws)[np.isfinite(draws)]
    if not finite.size:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(finite, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def intervals(scorer: Scorer, n: int, *, resamples: int, seed: int) -> dict[str, Interval]:
    """The 95 % interval of every metric that `scorer` gives over `n` samples."""
    point = scorer(None)
    draws: dict[str, list[float]] = {name: [] for name in point}
    for counts in _counts(n, resamples, seed):
        for name, value in scorer(counts).items():
            draws[name].append(value)
    return {name: _interval(value, draws[name]) for name, value in point.items()}


def paired(a: Scorer, b: Scorer, n: int, *, metric: str, resamples: int, seed: int) -> Interval:
    """The 95 % interval of `metric` of `a` minus that of `b`, both measured on the same `n` samples."""
    point = a(None)[metric] - b(None)[metric]
    return _interval(point, [a(counts)[metric] - b(counts)[metric] for counts in _counts(n, resamples, seed)])
