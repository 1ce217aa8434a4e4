"""Find the batch size that answers most rows a second, before a server takes requests.

A single timing may be off by half on a busy machine. So all sizes are timed in turn, in several rounds, and compared by their
medians, until the choice has not changed for `STABLE_ROUNDS` rounds or `MOST_SECONDS` are over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

SIZES = (1, 2, 4, 8, 16, 32)  # rows
LONGEST_SECONDS = 0.01  # no larger batch is tried after one that takes longer
STABLE_ROUNDS = 5
MOST_SECONDS = 0.05
GOOD_ENOUGH = 0.97  # share of the most rows a second at which a smaller batch is preferred, because it answers sooner


@dataclass(frozen=True)
class WarmUp:
    """What was measured. seconds: rows -> the median time of a batch. stable: whether the choice was the same to the end."""

    best_rows: int
    seconds: dict[int, float]
    rounds: int
    stable: bool

    @property
    def row_seconds(self) -> float:
        """Seconds a row in a batch of the best size."""
        return self.seconds[self.best_rows] / self.best_rows


def profile(run: Callable[[int], None], clock: Callable[[], float] = time.perf_counter) -> WarmUp:
    """Time batches of several sizes. run: runs a batch of so many rows. clock: returns seconds."""
    start, sizes = clock(), list[int]()
    for rows in SIZES:
        run(rows)  # the first one allocates
        sizes.append(rows)
        if _timed(run, rows, clock) > LONGEST_SECONDS:
            break
    times: dict[int, list[float]] = {rows: [] for rows in sizes}
    best, rounds, same = 0, 0, 0
    while same < STABLE_ROUNDS and (rounds == 0 or clock() - start < MOST_SECONDS):
        for rows in sizes:
            times[rows].append(_timed(run, rows, clock))
        rounds += 1
        seconds = {rows: median(values) for rows, values in times.items()}
        before, best = best, choose(seconds)
        same = same + 1 if best == before else 1
    return WarmUp(best, seconds, rounds, same >= STABLE_ROUNDS)


def choose(seconds: dict[int, float]) -> int:
    """The smallest size that is good enough. seconds: rows -> time of a batch."""
    most = max(rows / spent for rows, spent in seconds.items())
    return next(rows for rows, spent in seconds.items() if rows / spent >= GOOD_ENOUGH * most)


def _timed(run: Callable[[int], None], rows: int, clock: Callable[[], float]) -> float:
    start = clock()
    run(rows)
    return clock() - start
