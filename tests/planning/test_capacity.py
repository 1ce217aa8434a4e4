"""Replicas and cost: properties that hold for any traffic, and each formula compared with a simulation or a figure by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.errors import LooplineError
from loopline.planning import capacity, plan_files

PROFILE = plan_files.Profile.model_validate(
    {
        "schema": 1,
        "model": "any",
        "version": "0123456789ab",
        "processor": "any",
        "starts": [0.9, 1.0, 3.0],
        "batches": {1: 0.01, 8: 0.04},
        "spread": [[0.99, 0.0], [0.01, 0.01]],
        "engines": {1: 100.0, 2: 80.0},
        "memory": {"private": 60, "resident": 100, "growth": 10, "file": 5},
        "rounds": 100,
        "load_average": 1.0,
    }
)
MACHINE = plan_files.Machine(vcpu=2, memory_gib=4, per_hour=1.0)
UPTIME = plan_files.Serverless(
    bills="uptime",
    memory_gib=1,
    per_second=0.001,
    per_million_requests=2.0,
    idle_seconds=60,
    start_seconds=1.0,
)
PRICES = plan_files.Prices(currency="EUR", machines={"machine": MACHINE}, serverless={"zero": UPTIME})
GOAL = capacity.Goal(p99=0.1)


def week(rate):
    return np.full(plan_files.WEEK, float(rate))


def offer(row, goal=GOAL):
    return capacity.Offer("row", row, PROFILE, goal)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1e5), st.floats(0, 1e5))
def test_more_traffic_never_needs_fewer_replicas_or_costs_less(rate, other):
    low, high = sorted((rate, other))
    for row in (MACHINE, UPTIME):
        for less, more in zip(offer(row).options(week(low)), offer(row).options(week(high)), strict=True):
            assert less.replicas <= more.replicas
            assert less.month <= more.month * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 1e4))
def test_the_replicas_meet_the_goal_and_one_fewer_would_not(rate):
    row = offer(MACHINE)
    (option, _) = row.options(week(rate))
    assert option.p99 <= GOAL.p99
    assert rate / option.replicas <= GOAL.utilisation * row.service.capacity * (1 + 1e-9)
    if option.replicas > 1:
        fewer = rate / (option.replicas - 1)
        assert fewer > row.limit, "then either the goal or the utilisation is missed"


def test_no_traffic_costs_nothing_if_scaled_to_zero_and_full_price_if_rented():
    (zero,) = offer(UPTIME).options(week(0))
    assert zero.month == 0
    assert zero.cold_starts == 0
    (rented, hourly) = offer(MACHINE).options(week(0))
    assert rented.month == hourly.month == pytest.approx(730.0)


def test_spare_machines_are_paid_for_in_every_hour():
    rates = np.where(np.arange(plan_files.WEEK) < 84, 1.0, 1000.0)
    (always, hourly) = offer(MACHINE, replace(GOAL, spare=1)).options(rates)
    machines = math.ceil(always.replicas / 2) + 1
    assert always.machines == hourly.machines == machines
    assert always.month == pytest.approx(machines * 730)
    assert hourly.month == pytest.approx((machines + 2) / 2 * 730)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.05])
def test_cold_starts_and_paid_seconds_agree_with_a_simulation(rate):
    """A simulation of one instance, request by request: it starts in `cold` seconds, and ends `idle` after its last request."""
    cold, idle = 2.0, 60.0
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(1 / rate, 100_000))
    starts = waited = 0
    paid, ready, until = 0.0, -1.0, -1.0
    for at in arrivals:
        if at > until:
            starts += 1
            ready = at + cold
            paid += cold + idle
            until = ready + idle
        elif at + idle > until:
            paid += at + idle - until
            until = at + idle
        waited += at < ready
    (option,) = offer(UPTIME).options(week(rate))
    months = arrivals[-1] / 3600 / capacity.HOURS
    assert option.cold == cold
    assert option.cold_starts == pytest.approx(starts / months, rel=0.05)
    assert option.cold_share == pytest.approx(waited / len(arrivals), rel=0.05)
    assert option.parts["seconds"] == pytest.approx(paid / months * UPTIME.per_second, rel=0.05)
    assert option.parts["requests"] == pytest.approx(len(arrivals) / months * 2e-6, rel=0.02)


def test_requests_that_are_billed_singly_are_rounded_up():
    row = UPTIME.model_copy(update={"bills": "requests", "rounding_seconds": 0.1, "idle_seconds": 0.0})
    (option,) = offer(row).options(week(0.001))
    requests = 0.001 * 3600 * capacity.HOURS
    assert option.cold_share == pytest.approx(1.0), "nothing is kept"
    assert option.parts["seconds"] == pytest.approx(requests * (0.1 + 2.0 / (1 + 0.001 * 2.0)) * 0.001)


def test_memory_and_cores_bound_the_replicas_of_a_machine():
    assert offer(MACHINE).a_machine == 2
    assert offer(MACHINE.model_copy(update={"memory_gib": 0.15})).a_machine == 1
    with pytest.raises(LooplineError, match="hold no replica"):
        offer(MACHINE.model_copy(update={"memory_gib": 0.05}))


def test_shared_cores_are_as_slow_as_measured_and_a_row_may_state_a_speed():
    alone, beside = offer(MACHINE.model_copy(update={"vcpu": 1})), offer(MACHINE)
    assert beside.service.capacity == pytest.approx(0.8 * alone.service.capacity)
    fast = offer(MACHINE.model_copy(update={"vcpu": 1, "speed": 2.0}))
    assert fast.service.capacity == pytest.approx(2 * alone.service.capacity)
    assert PROFILE.efficiency(64) == pytest.approx(0.8), "what was not measured is taken to be as the last"


def test_rows_that_miss_the_goal_are_named_and_it_is_an_error_if_all_do():
    slow = MACHINE.model_copy(update={"speed": 0.01})
    prices = PRICES.model_copy(update={"machines": {"slow": slow, "machine": MACHINE}})
    plan = capacity.plan(PROFILE, week(1), prices, GOAL)
    assert "idle replica" in plan.left_out["slow"]
    assert [option.month for option in plan.options] == sorted(option.month for option in plan.options)
    with pytest.raises(LooplineError, match="no row of the price table"):
        capacity.plan(PROFILE, week(1), PRICES, capacity.Goal(p99=0.001))


def test_a_goal_out_of_range_is_refused():
    for wrong in ({"p99": 0}, {"p99": 1, "utilisation": 1}, {"p99": 1, "spare": -1}, {"p99": math.nan}):
        with pytest.raises(LooplineError, match="must be"):
            capacity.Goal(**wrong)


def test_memory_of_larger_models_follows_the_rule():
    assert capacity.memory(7e9, 16) == pytest.approx(16.8e9)
    assert capacity.memory(7e9, 4) == pytest.approx(4.2e9)
    for wrong in ((0, 8), (-1, 8), (1e9, 0), (math.nan, 8)):
        with pytest.raises(LooplineError):
            capacity.memory(*wrong)
