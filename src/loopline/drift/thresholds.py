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

from loopline.drift.statistic import threshold_terms, weight

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


class _Rows:
    """Rows as bin numbers, all signals side by side in one row of columns. samples: rows of a reference (default: all)."""

    def __init__(
        self, bins: Mapping[str, NDArray[np.int64]], widths: Mapping[str, int], samples: int | None = None
    ) -> None:
        self.names = list(bins)
        sizes = [widths[name] for name in self.names]
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        self.columns = int(sum(sizes))
        self.flat = np.stack([bins[name] for name in self.names], 1) + self.starts
        self.samples = samples or len(self.flat)

    def extend(self, rng: np.random.Generator) -> None:
        """Add a row for the first bin and for the last one before NaN's of each signal: any row, moved to that bin."""
        last = np.append(self.starts[1:], self.columns) - 2
        ends = np.concatenate([self.starts, last])
        beyond = self.flat[rng.integers(len(self.flat), size=len(ends))]
        beyond[np.arange(len(ends)), np.arange(len(ends)) % len(self.names)] = ends
        self.flat = np.concatenate([self.flat, beyond])

    def draw(self, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Numbers of rows, with repetition: int64 (size,)."""
        return rng.integers(len(self.flat), size=size)

    def counts(self, chosen: NDArray[np.int64], groups: NDArray[np.int64], number: int) -> NDArray[np.float64]:
        """Counts of the chosen rows by group: (number, columns)."""
        codes = (self.flat[chosen] + groups[:, None] * self.columns).ravel()
        return np.bincount(codes, minlength=number * self.columns).reshape(number, -1).astype(np.float64)

    def evidence(self, windows: NDArray[np.float64], n: float, reference: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of each window of n rows and signal, as `statistic.evidence`: (windows, signals)."""
        p, q, part = windows / n, reference / self.samples, weight(n, self.samples)
        common = part * p
        common += (1 - part) * q
        np.maximum(common, np.finfo(np.float64).tiny, out=common)  # where it is 0, p and q are
        p -= q  # in place: these arrays are large, and this is most of what a calibration does
        apart = np.square(p, out=p)
        apart /= common
        sums = np.add.reduceat(apart, self.starts, axis=1)
        found: NDArray[np.float64] = np.cbrt(sums / (1 / n + 1 / self.samples))
        return found


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
    rows, rng = _Rows(bins, widths, samples), np.random.default_rng(seed)
    rows.extend(rng)
    alone = np.zeros(PAIR_SIZE, np.int64)
    pairs = np.concatenate(
        [
            rows.evidence(rows.counts(rows.draw(PAIR_SIZE, rng), alone, 1), PAIR_SIZE, _resampled(rows, rng))
            for _ in range(PAIRS)
        ]
    )
    mean, sd = np.maximum(pairs.mean(0), LEAST[0]), np.maximum(pairs.std(0), LEAST[1])
    quantiles = {
        size: float(
            np.quantile(
                [_largest(rows, size, windows, mean, sd, rng) for _ in range(streams)], 1 - AIM * rate, method="weibull"
            )
        )
        for size in sizes
    }
    terms = np.array([threshold_terms(size, rows.samples) for size in sizes])
    constant, small, large = np.linalg.lstsq(terms, np.array(list(quantiles.values())))[0]
    return Null(
        dict(zip(rows.names, map(float, mean), strict=True)),
        dict(zip(rows.names, map(float, sd), strict=True)),
        (float(constant), float(small), float(large)),
        quantiles,
    )


def _resampled(rows: _Rows, rng: np.random.Generator) -> NDArray[np.float64]:
    """The counts of a reference that could as well have been drawn: (columns,)."""
    return rows.counts(rows.draw(rows.samples, rng), np.zeros(rows.samples, np.int64), 1).reshape(-1)


def _largest(
    rows: _Rows, size: int, windows: int, mean: NDArray[np.float64], sd: NDArray[np.float64], rng: np.random.Generator
) -> float:
    """The largest standardised evidence in a stream of `windows` windows, looked at `EVALUATIONS` times a window."""
    steps, total = windows * EVALUATIONS, windows * size
    groups = np.arange(total) * steps // total
    parts = rows.counts(rows.draw(total, rng), groups, steps)
    sums = np.cumsum(np.concatenate([np.zeros((1, rows.columns)), parts]), axis=0)
    seen = sums[EVALUATIONS:] - sums[:-EVALUATIONS]
    return float(((rows.evidence(seen, size, _resampled(rows, rng)) - mean) / sd).max())
