"""The windows that every method gets: the shift protocol of "Failing loudly" (Rabanser et al., NeurIPS 2019). Numpy only.

References and windows are drawn independently from the held-out samples, with repetition. (If the samples were split into a
reference and a replay, the sampling error of the replay would count as drift in every large window.) A share of a window is shifted.
All methods get the same windows. Windows without a shift give each method's rate of false alarms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIZES = (50, 100, 200, 500, 1000)
SHARES = (0.1, 0.5, 1.0)
RATE = 0.05  # rate of false alarms at which methods are compared
KNOCK_OUT, PRIOR = "knock-out", "prior"
MANY = 20_000  # samples whose mean gives the cost of a shift
OTHER = "other-domain"  # samples of another data set are mixed in


@dataclass(frozen=True)
class Condition:
    """A shift, its strength (1 to 3), and the share of a window's samples that have it."""

    shift: str
    strength: int
    share: float


@dataclass(frozen=True)
class Size:
    """The size of a run.

    references: number of references. nulls: number of windows without a shift for each reference and each of the `sizes`. streams:
    number of streams without drift that measure the rate of false alarms.
    """

    references: int = 3
    nulls: int = 34
    sizes: tuple[int, ...] = SIZES
    streams: int = 4000


@dataclass(frozen=True)
class Window:
    """A window of n samples.

    reference: number of its reference. rows: indices of held-out samples, (n,). changed: whether each is shifted, (n,). condition:
    None for no shift.
    """

    reference: int
    n: int
    condition: Condition | None
    rows: NDArray[np.int64]
    changed: NDArray[np.bool_]


def conditions(shifts: Sequence[str], *, classes: bool, other: bool = False) -> list[Condition]:
    """Return the conditions of the protocol. classes: whether each sample has one class. other: whether there is another data set."""
    listed = [Condition(shift, strength, share) for shift in shifts for strength in (1, 2, 3) for share in SHARES]
    if other:
        listed += [Condition(OTHER, 1, share) for share in SHARES]
    if classes:
        listed += [Condition(kind, strength, 1.0) for kind in (KNOCK_OUT, PRIOR) for strength in (1, 2, 3)]
    return listed


def reference(samples: int, number: int) -> NDArray[np.int64]:
    """Return the rows of a reference, as many as there are samples, (samples,). number: seed of the draw."""
    return np.random.default_rng([1, number]).integers(samples, size=samples)


def windows(
    samples: int, targets: NDArray[np.int64] | None, listed: Sequence[Condition], size: Size, rounds: int = 1
) -> Iterator[Window]:
    """Yield every window. listed: conditions. rounds: number of windows of each condition, reference and size."""
    population = np.arange(samples)
    for number in range(size.references):
        rng = np.random.default_rng([2, number])
        for n in size.sizes:
            for _ in range(size.nulls):
                yield Window(number, n, None, rng.choice(population, n), np.zeros(n, bool))
            for condition in listed:
                for _ in range(rounds):
                    yield shifted(number, n, condition, population, targets, rng)


def shifted(
    number: int,
    n: int,
    condition: Condition,
    population: NDArray[np.int64],
    targets: NDArray[np.int64] | None,
    rng: np.random.Generator,
) -> Window:
    """Return a window of n samples under a condition. number: of its reference. population: rows to draw from."""
    if condition.shift not in (KNOCK_OUT, PRIOR):
        changed = np.zeros(n, bool)
        changed[: round(condition.share * n)] = True
        return Window(number, n, condition, rng.choice(population, n), rng.permutation(changed))
    assert targets is not None, "shares of classes shift only if each sample has one class"
    classes = int(targets.max()) + 1
    if condition.shift == KNOCK_OUT:  # some classes are missing
        missing = max(1, round((0.1, 0.3, 0.5)[condition.strength - 1] * classes))
        rows = rng.choice(population[targets >= missing], n)
    else:  # one class is most of the traffic
        first = rng.binomial(n, (0.25, 0.5, 0.8)[condition.strength - 1])
        parts = rng.choice(population[targets == 0], first), rng.choice(population[targets != 0], n - first)
        rows = np.concatenate(parts)
    return Window(number, n, condition, rows, np.zeros(n, bool))
