"""The latency of a request at a replica, by a queue whose server takes all waiting requests at once, up to a batch.

Arrivals are Poisson. When the server is free, it takes the waiting requests, at least one and at most B; a batch of b takes
tau(b) plus a random extra. This is the bulk-service queue of Bailey, "On queueing processes with bulk service" (1954), with
Neuts's rule "as soon as one waits" (1967); with B = 1 it is M/G/1. Inoue, "Queueing analysis of GPU-based inference servers
with dynamic batching" (2021) shows that inference servers follow it. The Markov chain of the number that waits when a batch
ends is solved numerically; the distribution of a request's time follows from it. Tests compare it with a simulation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MOST_STATES = 1024  # largest number of states of the chain; a queue that is often longer counts as endless
NORMAL = ((1 / 6, -(3**0.5)), (2 / 3, 0.0), (1 / 6, 3**0.5))  # Gauss-Hermite: a normal distribution as three points
MOMENTS = 16  # points in time of a running batch at which a request may arrive
NEGLIGIBLE = 1e-8  # chances up to this are left out
LONG = 1e-5  # if the chance of the longest queue is above this, still longer queues would matter


@dataclass(frozen=True, eq=False)
class Service:
    """A replica. seconds: (B,), those of a batch of 1 to B. extra: (share of batches, extra seconds); the shares add up to 1."""

    seconds: Floats
    extra: tuple[tuple[float, float], ...] = ((1.0, 0.0),)

    @classmethod
    def measured(
        cls, batches: Mapping[int, float], extra: Sequence[tuple[float, float]], speed: float = 1.0
    ) -> Service:
        """Make a replica from a profile, with batches up to the size that answers the most requests a second.

        Between the measured sizes, seconds are interpolated. speed: the processor's, as a multiple of the measured one's.
        """
        sizes = sorted(batches)
        seconds = np.maximum.accumulate([batches[size] for size in sizes]) / speed
        best = max(range(len(sizes)), key=lambda row: sizes[row] / seconds[row])
        every_size = np.arange(1, sizes[best] + 1)
        return cls(np.interp(every_size, sizes, seconds), tuple((share, more / speed) for share, more in extra))

    @property
    def mean_extra(self) -> float:
        """The mean of the extra seconds of a batch."""
        return sum(share * more for share, more in self.extra)

    @cached_property
    def capacity(self) -> float:
        """The largest number of requests a second that a replica can answer."""
        return float(np.max(np.arange(1, len(self.seconds) + 1) / (self.seconds + self.mean_extra)))

    def latency(self, rate: float, quantile: float = 0.99) -> float:
        """The `quantile` of the requests' seconds when `rate` requests a second arrive; infinite in overload."""
        shares, more = (np.array(column) for column in zip(*self.extra, strict=True))
        if rate >= self.capacity:
            return inf
        if rate <= 0:
            return _quantile(self.seconds[0] + more, shares, quantile)
        waiting = self._waiting(rate, shares, more)
        if waiting[-1] > LONG:
            return inf
        most = len(self.seconds)
        # The chances that a batch has 1 to B requests.
        taken = np.bincount(np.clip(np.arange(len(waiting)), 1, most), waiting, most + 1)[1:]
        spent = self.seconds[: len(taken), None] + more  # (b, extra)
        weight = taken[:, None] * shares * spent  # mean time of a cycle that passes in such batches
        idle = waiting[0] / rate
        total = weight.sum() + idle

        moments = (np.arange(MOMENTS) + 0.5) / MOMENTS
        ahead = _poisson(rate * spent[..., None] * moments, len(waiting))  # (b, extra, moment, requests)
        left = waiting[most:].copy()  # chances of the number of requests that a full batch leaves behind
        left[0] += waiting[0] if most == 1 else 0.0
        if left.any():
            ahead[-1] = _shifted(ahead[-1], left / left.sum())
        chance = (weight[..., None, None] / total / MOMENTS) * ahead
        rest = (spent[..., None] * (1 - moments))[..., None]  # remaining seconds of the running batch
        number = np.arange(len(waiting))
        counts = chance > NEGLIGIBLE
        chance, rest = chance[counts], np.broadcast_to(rest, chance.shape)[counts]
        # The number of full batches before the request's own, and of requests before it in its own.
        full, beside = np.divmod(np.broadcast_to(number, counts.shape)[counts], most)
        values, chances = [self.seconds[:1]], [np.array([idle / total])]
        spread = np.sqrt(shares @ (more - self.mean_extra) ** 2 * full)
        for share, far in NORMAL:
            until = rest + np.maximum(
                full * (self.seconds[-1] + self.mean_extra) + far * spread, full * self.seconds[-1]
            )
            later = np.maximum(
                0.0, rate * until + far * np.sqrt(rate * until)
            )  # arrivals in time for the request's batch
            size = np.minimum(most, beside + 1 + np.rint(later))
            values.append(until + np.interp(size, np.arange(1, most + 1), self.seconds))
            chances.append(share * chance)
        return _quantile(
            np.add.outer(np.concatenate(values), more).ravel(),
            np.multiply.outer(np.concatenate(chances), shares).ravel(),
            quantile,
        )

    def _waiting(self, rate: float, shares: Floats, more: Floats) -> Floats:
        """The stationary chance of each number of requests that waits when a batch ends."""
        most = len(self.seconds)
        variance = 1 + rate**2 * (shares @ (more - self.mean_extra) ** 2) / max(1.0, rate * (self.seconds[-1]))
        slack = 1 - rate / self.capacity
        states = min(MOST_STATES, ceil(2 * most + rate * more.max() + 8 * variance / slack + 16))
        came = np.einsum("j,bjk->bk", shares, _poisson(rate * (self.seconds[:, None] + more), states))
        chain = np.zeros((states, states))
        for number in range(states):
            left = max(number - most, 0)
            chain[number, left:] = came[min(max(number, 1), most) - 1, : states - left]
        chain[:, -1] += np.maximum(0.0, 1 - chain.sum(axis=1))  # the last state stands for all longer queues too
        equations = chain.T - np.eye(states)
        equations[-1] = 1.0  # the chances add up to 1: this replaces an equation that follows from the others
        chances = np.linalg.solve(equations, np.append(np.zeros(states - 1), 1.0))
        return np.maximum(chances, 0.0)

    def limit(self, objective: float, utilisation: float, quantile: float = 0.99) -> float:
        """The largest number of requests a second at which a replica's `quantile` is within `objective` seconds.

        It is at most the share `utilisation` of the capacity, and 0 if even an idle replica is slower than the objective.
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
    """The Poisson chances of 0 to count - 1 events, along a new last axis."""
    number = np.arange(count)
    logs = np.append(0.0, np.cumsum(np.log(np.arange(1, count))))
    chances: Floats = np.exp(number * np.log(np.maximum(means, 1e-300))[..., None] - means[..., None] - logs)
    return chances


def _shifted(chances: Floats, left: Floats) -> Floats:
    """The distribution of the sum of a number with `chances` (last axis) and an independent one with the chances `left`."""
    size = chances.shape[-1]
    total = np.zeros_like(chances)
    for number in np.flatnonzero(left > NEGLIGIBLE):
        total[..., number:] += left[number] * chances[..., : size - number]
    return total


def _quantile(values: Floats, chances: Floats, quantile: float) -> float:
    order = np.argsort(values)
    reached = np.cumsum(chances[order])
    return float(values[order][min(len(values) - 1, int(np.searchsorted(reached, quantile * reached[-1])))])
