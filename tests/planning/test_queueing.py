"""The predicted latency against a simulation of the same queue, against formulas, and against common sense."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.planning.queueing import Service

sys.path.insert(0, str(Path(__file__).parent))
from simulation import latencies

ALONE = Service(np.array([0.01]))
HICCUPS = Service(np.array([0.01]), ((0.9, 0.0), (0.1, 0.05)))
BATCHES = Service(np.array([0.004 + 0.001 * size for size in range(1, 17)]))
SMALL = Service(
    np.array([0.00015 + 0.00008 * size for size in range(1, 33)]), ((0.9, 0.0), (0.09, 0.0003), (0.01, 0.01))
)


@pytest.mark.parametrize("load", [0.1, 0.4, 0.7, 0.8])
@pytest.mark.parametrize("service", [ALONE, HICCUPS, BATCHES, SMALL], ids=["alone", "hiccups", "batches", "small"])
def test_predicted_latency_agrees_with_a_simulated_queue(service, load):
    rate = load * service.capacity
    simulated = np.quantile(latencies(service, rate), [0.5, 0.99])
    assert service.latency(rate, 0.5) == pytest.approx(simulated[0], rel=0.15)
    assert service.latency(rate, 0.99) == pytest.approx(simulated[1], rel=0.06)


def crommelin(rate, seconds, wait):
    """The chance to wait at most so long in M/D/1: Erlang (1909), Crommelin (1932)."""
    terms = [
        (-rate * (wait - k * seconds)) ** k / math.factorial(k) * math.exp(rate * (wait - k * seconds))
        for k in range(int(wait / seconds) + 1)
    ]
    return (1 - rate * seconds) * sum(terms)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_without_batches_latency_follows_the_formula_of_constant_service(load):
    rate = load / 0.01
    p99 = ALONE.latency(rate)
    assert crommelin(rate, 0.01, p99 - 0.01) == pytest.approx(0.99, abs=0.002)


def test_batches_raise_the_capacity():
    assert pytest.approx(100.0) == ALONE.capacity
    assert pytest.approx(16 / 0.02) == BATCHES.capacity
    assert BATCHES.latency(300.0) < 0.05, "more than the 200 a second that single requests could be answered"


def test_latency_is_infinite_in_overload():
    assert ALONE.latency(100.0) == math.inf
    assert ALONE.latency(1e9) == math.inf


def test_a_goal_below_an_idle_replicas_latency_cannot_be_met():
    assert ALONE.limit(0.009, 0.7) == 0.0
    assert ALONE.limit(0.0101, 0.7) > 0.0
    assert ALONE.limit(10.0, 0.7) == pytest.approx(70.0)


services = st.builds(
    lambda start, row, sizes, share, more: Service(
        start + row * np.arange(1, sizes + 1), ((1 - share, 0.0), (share, more))
    ),
    st.floats(1e-4, 0.1),
    st.floats(1e-5, 0.05),
    st.integers(1, 16),
    st.floats(0.001, 0.2),
    st.floats(0.0, 0.1),
)


@settings(max_examples=60, deadline=None)
@given(services, st.floats(0.01, 0.9), st.floats(0.01, 0.9))
def test_more_traffic_is_never_faster(service, load, other):
    low, high = sorted((load, other))
    slow, fast = service.latency(high * service.capacity), service.latency(low * service.capacity)
    assert slow >= fast * 0.97, "but for the steps in which it is computed"


@settings(max_examples=40, deadline=None)
@given(services, st.floats(1.0, 1000.0), st.integers(1, 20))
def test_more_replicas_are_never_slower(service, rate, replicas):
    assert service.latency(rate / (replicas + 1)) <= service.latency(rate / replicas) * 1.03


def test_a_measured_service_is_interpolated_up_to_its_best_batch():
    service = Service.measured({1: 0.01, 2: 0.012, 4: 0.016, 8: 0.04}, [(1.0, 0.0)], speed=2.0)
    np.testing.assert_allclose(service.seconds, [0.005, 0.006, 0.007, 0.008])
    assert service.capacity == pytest.approx(500.0)
