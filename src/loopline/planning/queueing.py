"""How long a request takes at a replica: a queue with one server that takes all that waits at once, up to a batch.

Poisson arrivals; when the server is free it takes what waits, at least one and at most B requests; a batch of b takes
tau(b) plus a random extra. This is the bulk-service queue of Bailey, "On queueing processes with bulk service" (1954), with
Neuts's rule "as soon as one waits" (1967); with B = 1 it is M/G/1. Inoue, "Queueing analysis of GPU-based inference servers
with dynamic batching" (2021) shows that inference servers follow it. The chain of how many wait when a batch
ends is solved numerically, and from it the whole distribution of a request's time. Tests hold it against a simulation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MOST_STATES = 1024  # of how many wait; a queue that is often longer counts as endless
NORMAL = ((1 / 6, -(3**0.5)), (2 / 3, 0.0), (1 / 6, 3**0.5))  # Gauss-Hermite: a normal distribution as three points
MOMENTS = 16  # of a batch that a request may find under way
NEGLIGIBLE = 1e-8
LONG = 1e-5  # chance of the longest queue, above which what lies beyond would count


@dataclass(frozen=True, eq=False)
class Service:
    """seconds (B,): of a batch of 1 to B. extra: (share of batches, seconds on top); the shares add up to 1."""

    seconds: Floats
    extra: tuple[tuple[float, float], ...] = ((1.0, 0.0),)

    @classmethod
    def measured(
        cls, batches: Mapping[int, float], extra: Sequence[tuple[float, float]], speed: float = 1.0
    ) -> Service:
        """From a profile: seconds of measured batches, in between interpolated, up to the size that does most requests a second.

        speed: of the processor, as a multiple of the measured one's.
        """
        sizes = sorted(batches)
        seconds = np.maximum.accumulate([batches[size] for size in sizes]) / speed
        best = max(range(len(sizes)), key=lambda row: sizes[row] / seconds[row])
        wanted = np.arange(1, sizes[best] + 1)
        return cls(np.interp(wanted, sizes, seconds), tuple((share, more / speed) for share, more in extra))

    @property
    def mean_extra(self) -> float:
        """Seconds."""
        return sum(share * more for share, more in self.extra)

    @cached_property
    def capacity(self) -> float:
        """Requests a second that a replica can answer at most."""
        return float(np.max(np.arange(1, len(self.seconds) + 1) / (self.seconds + self.mean_extra)))

    def latency(self, rate: float, quantile: float = 0.99) -> float:
        """Seconds that a share `quantile` of the requests take at most, when `rate` a second come; infinite in overload."""
        shares, more = (np.array(column) for column in zip(*self.extra, strict=True))
        if rate >= self.capacity:
            return inf
        if rate <= 0:
            return _quantile(self.seconds[0] + more, shares, quantile)
        waiting = self._waiting(rate, shares, more)
        if waiting[-1] > LONG:
            return inf
        most = len(self.seconds)
        # How often a batch has 1..B
        taken = np.bincount(np.clip(np.arange(len(waiting)), 1, most), waiting, most + 1)[1:]
        spent = self.seconds[: len(taken), None] + more  # (b, extra)
        weight = taken[:, None] * shares * spent  # time in such batches
        idle = waiting[0] / rate
        total = weight.sum() + idle

        moments = (np.arange(MOMENTS) + 0.5) / MOMENTS
        ahead = _poisson(rate * spent[..., None] * moments, len(waiting))  # (b, extra, moment, requests)
        left = waiting[most:].copy()  # chances that a full batch leaves so many behind
        left[0] += waiting[0] if most == 1 else 0.0
        if left.any():
            ahead[-1] = _shifted(ahead[-1], left / left.sum())
        chance = (weight[..., None, None] / total / MOMENTS) * ahead
        rest = (spent[..., None] * (1 - moments))[..., None]  # of the batch under way
        number = np.arange(len(waiting))
        counts = chance > NEGLIGIBLE
        chance, rest = chance[counts], np.broadcast_to(rest, chance.shape)[counts]
        # Batches before its own, and in it
        full, beside = np.divmod(np.broadcast_to(number, counts.shape)[counts], most)
        values, chances = [self.seconds[:1]], [np.array([idle / total])]
        spread = np.sqrt(shares @ (more - self.mean_extra) ** 2 * full)
        for share, far in NORMAL:
            until = rest + np.maximum(
                full * (self.seconds[-1] + self.mean_extra) + far * spread, full * self.seconds[-1]
            )
            came = np.maximum(0.0, rate * until + far * np.sqrt(rate * until))  # after it, in time for its batch
            size = np.minimum(most, beside + 1 + np.rint(came))
            values.append(until + np.interp(size, np.arange(1, most + 1), self.seconds))
            chances.append(share * chance)
        return _quantile(
            np.add.outer(np.concatenate(values), more).ravel(),
            np.multiply.outer(np.concatenate(chances), shares).ravel(),
            quantile,
        )

    def _waiting(self, rate: float, shares: Floats, more: Floats) -> Floats:
        """Chance of each number of requests that wait when a batch ends."""
        most = len(self.seconds)
        variance = 1 + rate**2 * (shares @ (more - self.mean_extra) ** 2) / max(1.0, rate * (self.seconds[-1]))
        slack = 1 - rate / self.capacity
        states = min(MOST_STATES, ceil(2 * most + rate * more.max() + 8 * variance / slack + 16))
        came = np.einsum("j,bjk->bk", shares, _poisson(rate * (self.seconds[:, None] + more), states))
        chain = np.zeros((states, states))
        for number in range(states):
            left = max(number - most, 0)
            chain[number, left:] = came[min(max(number, 1), most) - 1, : states - left]
        chain[:, -1] += np.maximum(0.0, 1 - chain.sum(axis=1))  # more than that
        equations = chain.T - np.eye(states)
        equations[-1] = 1.0  # in place of one that follows from the others
        found = np.linalg.solve(equations, np.append(np.zeros(states - 1), 1.0))
        return np.maximum(found, 0.0)

    def limit(self, objective: float, utilisation: float, quantile: float = 0.99) -> float:
        """Requests a second that one replica takes with its `quantile` within `objective` seconds, at most that busy.

        0 where even an idle one is slower.
        """
        low, high = 0.0, utilisation * self.capacity
        if self.latency(0.0, quantile) > objective:
            return 0.0
        if self.latency(high, quantile) <= objective:
            return high
        while high - low > 1e-3 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if self.latency(middle, quantile) <= objective else (low, middle)
        return low


def _poisson(means: Floats, count: int) -> Floats:
    """Chances of 0 to count - 1, along a new last axis."""
    number = np.arange(count)
    logs = np.append(0.0, np.cumsum(np.log(np.arange(1, count))))
    chances: Floats = np.exp(number * np.log(np.maximum(means, 1e-300))[..., None] - means[..., None] - logs)
    return chances


def _shifted(chances: Floats, left: Floats) -> Floats:
    """The distribution along the last axis plus an independent number with chances `left`."""
    size = chances.shape[-1]
    found = np.zeros_like(chances)
    for number in np.flatnonzero(left > NEGLIGIBLE):
        found[..., number:] += left[number] * chances[..., : size - number]
    return found


def _quantile(values: Floats, chances: Floats, quantile: float) -> float:
    order = np.argsort(values)
    reached = np.cumsum(chances[order])
    return float(values[order][min(len(values) - 1, int(np.searchsorted(reached, quantile * reached[-1])))])
