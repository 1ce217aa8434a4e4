"""The plan: replicas, latency and monthly cost of machines that are always on and of services that scale to zero.

A replica is one process on one core. The gateway splits requests evenly. Each replica is assumed to get a Poisson stream of
its share, which is conservative: a gateway that takes turns, or chooses the least busy replica, gives a more even stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from loopline.errors import LooplineError
from loopline.planning.plan_files import Machine, Prices, Profile, Serverless
from loopline.planning.queueing import Service

HOURS = 8760 / 12  # hours of a month
HOUR = 3600.0  # seconds of an hour
OVERHEAD = 1.2  # EleutherAI, "Transformer Math 101" (2023): inference takes about 1.2 times the memory of the weights
Week = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The goal of a plan. p99: seconds. utilisation: largest share of a replica's capacity to use. spare: extra machines."""

    p99: float
    utilisation: float = 0.7
    spare: int = 0

    def __post_init__(self) -> None:
        """Raise LooplineError if a value is out of range."""
        if not (self.p99 > 0 and 0 < self.utilisation < 1 and self.spare >= 0):
            raise LooplineError(
                "the p99 must be above 0, the utilisation between 0 and 1, the spare machines 0 or more"
            )


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to serve the traffic. replicas, machines: their number in the busiest hour. p99: seconds in that hour, while warm.

    month: cost of a month; parts: its parts. cold_starts: number in a month. cold_share: share of the requests that wait for a cold
    start, for `cold` seconds at most.
    """

    name: str
    way: str
    replicas: int
    p99: float
    month: float
    parts: Mapping[str, float]
    machines: int = 0
    cold_starts: float = 0.0
    cold_share: float = 0.0
    cold: float = 0.0


class Offer:
    """A row of the price table with a profile and a goal. rates: (168,) requests a second in each hour of a week."""

    def __init__(self, name: str, row: Machine | Serverless, profile: Profile, goal: Goal) -> None:
        """Raise LooplineError if no replica fits into the memory, or if even an idle replica misses the goal."""
        self.name, self.row, self.profile, self.goal = name, row, profile, goal
        fits = int(row.memory_gib * 1024 // profile.memory.resident)
        if not fits:
            raise LooplineError(f"{row.memory_gib:g} GiB hold no replica of {profile.memory.resident:.0f} MiB")
        self.a_machine = min(fits, getattr(row, "vcpu", 1))  # replicas that a machine holds
        speed = row.speed * profile.efficiency(self.a_machine)
        self.service = Service.measured(profile.batches, profile.spread, speed)
        self.start = float(np.median(profile.starts)) / row.speed
        self.limit = self.service.limit(goal.p99, goal.utilisation)
        if not self.limit:
            idle = self.service.latency(0.0) * 1e3
            raise LooplineError(
                f"the p99 of an idle replica is {idle:.3g} ms already, the goal is {goal.p99 * 1e3:g} ms"
            )

    def replicas(self, rates: Week) -> NDArray[np.int64]:
        """The number of replicas that meets the goal at each of the rates, at least 1."""
        return np.maximum(1, np.ceil(rates / self.limit)).astype(np.int64)

    def options(self, rates: Week) -> list[Option]:
        """The options that this row offers: always on and resized hourly, or scaled to zero."""
        if isinstance(self.row, Machine):
            return [self._rented(rates, self.row, "always on"), self._rented(rates, self.row, "resized hourly")]
        return [self._scaled_to_zero(rates, self.row)]

    def _option(self, rates: Week, way: str, parts: Mapping[str, float]) -> Option:
        peak = int(self.replicas(rates).max())
        p99 = self.service.latency(float(rates.max()) / peak)
        return Option(name=self.name, way=way, replicas=peak, p99=p99, parts=parts, month=sum(parts.values()))

    def _rented(self, rates: Week, row: Machine, way: str) -> Option:
        machines = -(-self.replicas(rates) // self.a_machine) + self.goal.spare
        paid = float(machines.max() if way == "always on" else machines.mean())
        option = self._option(rates, way, {"machines": paid * HOURS * row.per_hour})
        return replace(option, machines=int(machines.max()))

    def _scaled_to_zero(self, rates: Week, row: Serverless) -> Option:
        """The option in which the first instance starts and ends with the traffic, and further instances stay for their hour.

        A renewal argument, which is exact for Poisson arrivals at rate r: an instance takes C to start and ends T after its
        last request. So it serves rC + e^(rT) requests in a cycle, of which 1 + rC wait for the start. It is up for the whole
        cycle except the time until the next request, whose mean is 1/r.
        """
        cold = self.start + row.start_seconds
        a_cycle = rates * cold + np.exp(np.minimum(rates * row.idle_seconds, 700.0))
        starts = rates / a_cycle * HOUR
        up = (1 - 1 / a_cycle + self.replicas(rates) - 1) * HOUR
        requests = rates * HOUR
        if row.bills == "requests":
            spent = float(self.service.seconds[0] + self.service.mean_extra)  # on one request
            up = requests * ceil(spent / row.rounding_seconds - 1e-9) * row.rounding_seconds + starts * cold
        week = {"seconds": up.sum() * row.per_second, "requests": requests.sum() * row.per_million_requests / 1e6}
        waited = (requests * (1 + rates * cold) / a_cycle).sum()
        month = HOURS / len(rates)
        return replace(
            self._option(rates, "scale to zero", {part: float(cost) * month for part, cost in week.items()}),
            cold_starts=float(starts.sum()) * month,
            cold_share=float(waited / max(requests.sum(), 1e-300)),
            cold=cold,
        )


@dataclass(frozen=True, kw_only=True)
class CapacityPlan:
    """A plan. rates: (168,) requests a second. options: the cheapest first. left_out: the reason by row that misses the goal."""

    goal: Goal
    rates: Week
    offers: tuple[Offer, ...]
    options: tuple[Option, ...]
    left_out: Mapping[str, str]


def plan(profile: Profile, rates: Week, prices: Prices, goal: Goal) -> CapacityPlan:
    """Plan with every option of the price table. Raises LooplineError if no row can meet the goal."""
    offers: list[Offer] = []
    left_out: dict[str, str] = {}
    rows: dict[str, Machine | Serverless] = {**prices.machines, **prices.serverless}
    for name, row in rows.items():
        try:
            offers.append(Offer(name, row, profile, goal))
        except LooplineError as error:
            left_out[name] = str(error)
    if not offers:
        raise LooplineError(
            "no row of the price table meets the goal:\n" + "\n".join(f"  {k}: {v}" for k, v in left_out.items())
        )
    options = [option for offer in offers for option in offer.options(rates)]
    return CapacityPlan(
        goal=goal,
        rates=rates,
        offers=tuple(offers),
        options=tuple(sorted(options, key=lambda option: option.month)),
        left_out=left_out,
    )


def memory(parameters: float, bits: float) -> float:
    """The bytes that serving a model takes: parameters x bits / 8 x 1.2. Raises LooplineError on values out of range."""
    if not (0 < parameters < 1e15 and 0 < bits <= 64):
        raise LooplineError("parameters must be above 0, bits from 1 to 64")
    return parameters * bits / 8 * OVERHEAD
