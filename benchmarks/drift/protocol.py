"""Which windows every method sees: the shift protocol of "Failing loudly" (Rabanser et al., NeurIPS 2019). Numpy only.

The held-out samples stand for the world: references and windows are drawn from them independently, with repetition. (Were they split
into a reference and a replay, the replay's own error would be taken for drift in every large window.) A share of a window is shifted.
The same windows go to all methods, and windows without a shift say what each method's false alarms are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIZES = (50, 100, 200, 500, 1000)
SHARES = (0.1, 0.5, 1.0)
RATE = 0.05  # of false alarms, at which methods are compared
KNOCK_OUT, PRIOR = "knock-out", "prior"
MANY = 20_000  # samples whose mean says what a shift costs
OTHER = "other-domain"  # samples of another data set are mixed in


@dataclass(frozen=True)
class Condition:
    """A shift, its strength (1 to 3), and the share of a window's samples that have it."""

    shift: str
    strength: int
    share: float


@dataclass(frozen=True)
class Size:
    """How much is run. references: drawn. nulls: windows without a shift for each of them and each size."""

    references: int = 3
    nulls: int = 34
    sizes: tuple[int, ...] = SIZES
    streams: int = 4000  # without drift, for the rate of false alarms


@dataclass(frozen=True)
class Window:
    """rows: numbers of held-out samples. changed: which of them are shifted. condition: None for no shift."""

    reference: int
    n: int
    condition: Condition | None
    rows: NDArray[np.int64]
    changed: NDArray[np.bool_]


def conditions(shifts: Sequence[str], *, classes: bool, other: bool = False) -> list[Condition]:
    """All of the protocol. classes: each sample has one class, so that shares of classes can shift. other: a data set is there."""
    found = [Condition(shift, strength, share) for shift in shifts for strength in (1, 2, 3) for share in SHARES]
    if other:
        found += [Condition(OTHER, 1, share) for share in SHARES]
    if classes:
        found += [Condition(kind, strength, 1.0) for kind in (KNOCK_OUT, PRIOR) for strength in (1, 2, 3)]
    return found


def reference(samples: int, number: int) -> NDArray[np.int64]:
    """Rows of a reference: as many as there are samples, drawn anew for each number."""
    return np.random.default_rng([1, number]).integers(samples, size=samples)


def windows(
    samples: int, targets: NDArray[np.int64] | None, given: Sequence[Condition], size: Size, rounds: int = 1
) -> Iterator[Window]:
    """Every window. rounds: windows of each condition, reference and size."""
    everything = np.arange(samples)
    for number in range(size.references):
        rng = np.random.default_rng([2, number])
        for n in size.sizes:
            for _ in range(size.nulls):
                yield Window(number, n, None, rng.choice(everything, n), np.zeros(n, bool))
            for condition in given:
                for _ in range(rounds):
                    yield shifted(number, n, condition, everything, targets, rng)


def shifted(
    number: int,
    n: int,
    condition: Condition,
    everything: NDArray[np.int64],
    targets: NDArray[np.int64] | None,
    rng: np.random.Generator,
) -> Window:
    """A window of n samples under a condition."""
    if condition.shift not in (KNOCK_OUT, PRIOR):
        changed = np.zeros(n, bool)
        changed[: round(condition.share * n)] = True
        return Window(number, n, condition, rng.choice(everything, n), rng.permutation(changed))
    assert targets is not None, "classes are shifted where each sample has one"
    classes = int(targets.max()) + 1
    if condition.shift == KNOCK_OUT:  # some classes are gone
        gone = max(1, round((0.1, 0.3, 0.5)[condition.strength - 1] * classes))
        rows = rng.choice(everything[targets >= gone], n)
    else:  # one class is most of the traffic
        first = rng.binomial(n, (0.25, 0.5, 0.8)[condition.strength - 1])
        parts = rng.choice(everything[targets == 0], first), rng.choice(everything[targets != 0], n - first)
        rows = np.concatenate(parts)
    return Window(number, n, condition, rows, np.zeros(n, bool))
