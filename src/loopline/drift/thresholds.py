"""When is a difference an alarm? Thresholds from windows without drift, drawn from all held-out rows.

Rows are drawn whole, so signals that move together are not punished as a correction for independent tests would. In each simulated
stream the reference is drawn anew too: a small one is itself off the truth, and that counts. Windows overlap as they do when rules
are evaluated thirty times a window. The threshold is for the largest score of all signals over the whole stream.

Traffic reaches bins that no row of the reference is in. A signal with few values, such as the share of digits in texts that
hardly have any, has such a bin at its end in every third reference, and there a handful of samples is much evidence. So what is
simulated holds more than the reference: the rows that made the bins too, whose largest values lie in the last bin, and for each
end of each signal one row beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loopline.drift.statistic import evidence, threshold_terms

EVALUATIONS = 30  # a window
SIZES = (50, 100, 200, 500, 1000, 2000)
PAIRS = 400  # windows for a signal's mean and deviation
PAIR_SIZE = 200
AIM = 0.85  # of the promised rate: a threshold found by simulation is itself uncertain
# Mean and deviation of a signal that hardly varies in the reference: as of two bins, for it may vary a little
LEAST = (0.8, 0.3)


@dataclass(frozen=True)
class Null:
    """What is to be expected without drift: see `reference.Reference`. quantiles: window size -> threshold, as simulated."""

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
    """Simulate without drift.

    bins: each signal's bin of every held-out row. widths: each signal's number of bins. samples: rows of the reference. rate: of
    streams that may raise an alarm. windows: length of a stream. streams: how many are simulated for each size of window.
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
    """bins: of each row, int64 (rows,). width: number of bins."""

    bins: NDArray[np.int64]
    width: int

    def counts(self, rows: NDArray[np.int64], groups: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        """Count the rows by bin and group: (bins, groups). One signal's table fits into a processor's cache; all signals' do not."""
        return np.bincount(self.bins[rows] * number + groups, minlength=self.width * number).reshape(self.width, number)


def _with_rows_beyond_the_ends(signals: list[_Signal], rng: np.random.Generator) -> list[_Signal]:
    """Add a row for the first bin and for the last one before NaN's of each signal: any row, moved to that bin."""
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
    """Draw rows with repetition for `sets` sets of `size`. Return the numbers of the rows and of their sets: (sets x size,) each."""
    return rng.integers(len(signals[0].bins), size=sets * size), np.repeat(np.arange(sets), size)


def _draw_references(
    signals: list[_Signal], sets: int, samples: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As `_draw`: each window or stream has another reference, since any could as well have been drawn."""
    return _draw(signals, sets, samples, rng)


def _pairs(signals: list[_Signal], samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The evidence of `PAIRS` windows, each beside a reference of its own: (signals, pairs)."""
    windows = _draw(signals, PAIRS, PAIR_SIZE, rng)
    references = _draw_references(signals, PAIRS, samples, rng)
    return np.stack([evidence(s.counts(*windows, PAIRS), s.counts(*references, PAIRS)) for s in signals])


def _stream(
    signals: list[_Signal], size: int, windows: int, samples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The largest evidence of each signal in a stream of `windows` windows, looked at `EVALUATIONS` times a window: (signals,)."""
    steps, total = windows * EVALUATIONS, windows * size
    rows, _ = _draw(signals, 1, total, rng)
    step = np.arange(total) * steps // total
    before = _draw_references(signals, 1, samples, rng)
    largest = []
    for signal in signals:
        until = np.cumsum(signal.counts(rows, 1 + step, 1 + steps).astype(np.float64), axis=1)
        sliding = until[:, EVALUATIONS:] - until[:, :-EVALUATIONS]
        largest.append(evidence(sliding, signal.counts(*before, 1)).max())
    return np.array(largest)
