"""Calibrate the thresholds of alarms by simulation: windows without drift are drawn from all held-out rows.

Each draw takes a row with all its signals, so correlated signals do not raise the threshold as a correction for independent tests
would. Each simulated stream also draws a new reference, because a small reference deviates from the truth itself. Windows overlap
as they do when the rules are evaluated thirty times a window. The threshold is for the largest standardised evidence of all signals.

Traffic reaches bins in which the reference has no row. A signal with few values, such as the share of digits in texts with hardly
any digits, has such a bin at its end in every third reference, and a handful of samples there is strong evidence. The simulation
therefore draws from more rows than the reference has: also from the rows that defined the bins, whose largest values lie in the
last bin, and from one extra row beyond each end of each signal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loopline.drift.statistic import evidence, threshold_terms

EVALUATIONS = 30  # of the rules in one window
SIZES = (50, 100, 200, 500, 1000, 2000)
PAIRS = 400  # windows that give the mean and the deviation of a signal's evidence
PAIR_SIZE = 200  # samples in each of them
AIM = 0.9  # share of the promised rate to aim at, because a simulated threshold is itself uncertain
# The least mean and deviation, those of two bins: a signal that is constant in the reference may vary a little in traffic.
LEAST = (0.8, 0.3)


@dataclass(frozen=True)
class Null:
    """The simulated figures without drift, see `reference.Reference`. quantiles: window size -> threshold before the fit."""

    mean: dict[str, float]
    sd: dict[str, float]
    threshold: tuple[float, float, float]
    quantiles: dict[int, float]


def calibrate(
    bins: Mapping[str, NDArray[np.int64]],
    widths: Mapping[str, int],
    *,
    samples: int,
    rate: float,
    windows: int,
    streams: int,
    seed: int,
    sizes: tuple[int, ...] = SIZES,
) -> Null:
    """Simulate streams without drift and fit the thresholds to them.

    bins: for each signal, the bin of every held-out row. widths: for each signal, its number of bins. samples: rows of the
    reference. rate: share of streams that may raise an alarm. windows: windows in a stream. streams: streams to simulate for each
    window size. sizes: window sizes in samples.
    """
    rng = np.random.default_rng(seed)
    signals = _with_rows_beyond_the_ends([_Signal(bins[name], widths[name]) for name in bins], rng)
    pairs = _pairs(signals, samples, rng)
    mean, sd = np.maximum(pairs.mean(1), LEAST[0]), np.maximum(pairs.std(1), LEAST[1])
    quantiles = {}
    for size in sizes:
        largest = [((_stream(signals, size, windows, samples, rng) - mean) / sd).max() for _ in range(streams)]
        quantiles[size] = float(np.quantile(largest, 1 - AIM * rate, method="weibull"))
    terms = np.array([threshold_terms(size, samples) for size in sizes])
    constant, small, large = np.linalg.lstsq(terms, np.array(list(quantiles.values())))[0]
    return Null(
        dict(zip(bins, map(float, mean), strict=True)),
        dict(zip(bins, map(float, sd), strict=True)),
        (float(constant), float(small), float(large)),
        quantiles,
    )


@dataclass(frozen=True)
class _Signal:
    """bins: bin of each row, int64 (rows,). width: number of bins."""

    bins: NDArray[np.int64]
    width: int

    def counts(self, rows: NDArray[np.int64], groups: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        """Count the rows by bin and group: (bins, groups). One signal at a time, because its table fits into a processor's cache."""
        return np.bincount(self.bins[rows] * number + groups, minlength=self.width * number).reshape(self.width, number)


def _with_rows_beyond_the_ends(signals: list[_Signal], rng: np.random.Generator) -> list[_Signal]:
    """Add two rows for each signal, one in its first bin and one in its last before NaN's: random rows, moved to these bins."""
    beyond = rng.integers(len(signals[0].bins), size=2 * len(signals))
    extended = []
    for number, signal in enumerate(signals):
        bins = signal.bins[beyond]
        bins[2 * number : 2 * number + 2] = 0, signal.width - 2
        extended.append(_Signal(np.concatenate([signal.bins, bins]), signal.width))
    return extended


def _draw(
    signals: list[_Signal], sets: int, size: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw `sets` sets of `size` rows with repetition. Return the numbers of the rows and of their sets: (sets x size,) each."""
    return rng.integers(len(signals[0].bins), size=sets * size), np.repeat(np.arange(sets), size)


def _pairs(signals: list[_Signal], samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the evidence of `PAIRS` windows, each compared with a reference of its own: (signals, pairs)."""
    windows = _draw(signals, PAIRS, PAIR_SIZE, rng)
    references = _draw(signals, PAIRS, samples, rng)  # new ones, because the real reference is a random draw as well
    return np.stack([evidence(s.counts(*windows, PAIRS), s.counts(*references, PAIRS)) for s in signals])


def _stream(
    signals: list[_Signal], size: int, windows: int, samples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the largest evidence of each signal in a stream that is evaluated `EVALUATIONS` times a window: (signals,)."""
    steps, total = windows * EVALUATIONS, windows * size
    rows, _ = _draw(signals, 1, total, rng)
    step = np.arange(total) * steps // total
    reference = _draw(signals, 1, samples, rng)  # a new one, as in `_pairs`
    largest = []
    for signal in signals:
        until = np.cumsum(signal.counts(rows, 1 + step, 1 + steps).astype(np.float64), axis=1)
        sliding = until[:, EVALUATIONS:] - until[:, :-EVALUATIONS]
        largest.append(evidence(sliding, signal.counts(*reference, 1)).max())
    return np.array(largest)
