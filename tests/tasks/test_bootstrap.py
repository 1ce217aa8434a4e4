"""Intervals: they hold the truth as often as they say, and pairing sees what two lone intervals cannot."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.tasks import bootstrap


def mean_of(values):
    def score(weights=None):
        w = np.ones(len(values)) if weights is None else weights
        return {"mean": float((w * values).sum() / w.sum())}

    return score


def test_ninety_five_percent_intervals_hold_the_truth_about_that_often():
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        found = bootstrap.intervals(mean_of(generator.random(100) < 0.8), 100, resamples=200, seed=trial)["mean"]
        held += found.low <= 0.8 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval():
    values = np.arange(50.0)
    first, second = (bootstrap.intervals(mean_of(values), 50, resamples=100, seed=3) for _ in range(2))
    assert first == second


def test_a_small_gain_on_every_sample_is_seen_only_when_paired():
    generator = np.random.default_rng(1)
    base = generator.normal(size=200)
    better = base + 0.05 + 0.01 * generator.normal(size=200)
    pair = bootstrap.paired(mean_of(better), mean_of(base), 200, metric="mean", resamples=500, seed=0)
    alone = bootstrap.intervals(mean_of(better), 200, resamples=500, seed=0)["mean"]
    assert pair.low > 0.04
    assert alone.low < base.mean()


def test_equal_models_differ_by_exactly_nothing():
    values = np.random.default_rng(2).random(30)
    assert bootstrap.paired(
        mean_of(values), mean_of(values), 30, metric="mean", resamples=100, seed=0
    ) == bootstrap.Interval(0, 0, 0)


def test_a_metric_that_some_resamples_cannot_give_still_has_an_interval():
    def score(weights=None):
        return {"rare": 0.5 if weights is None or weights[0] else float("nan")}

    found = bootstrap.intervals(score, 20, resamples=100, seed=0)["rare"]
    assert 0 < found.low < 0.5 < found.high < 1
    assert 20 < found.dropped < 55  # without the first of 20 samples are .95**20 = .36 of the resamples
    assert found.rounded()["dropped"] == found.dropped


def test_no_error_in_few_samples_is_no_proof_of_perfection():
    for n, low in ((3, 0.438), (20, 0.839), (361, 0.9895)):
        found = bootstrap.intervals(mean_of(np.ones(n)), n, resamples=100, seed=0)["mean"]
        assert (found.value, found.high) == (1, 1)
        assert found.low == pytest.approx(low, abs=5e-4)


def test_no_hit_in_few_samples_is_no_proof_of_the_opposite():
    found = bootstrap.intervals(mean_of(np.zeros(20)), 20, resamples=100, seed=0)["mean"]
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(0.161, abs=5e-4)


def test_the_interval_of_a_slice_is_as_wide_as_its_samples_are_few():
    whole, part = (
        bootstrap.intervals(mean_of(np.ones(300)), 300, resamples=100, seed=0, support=support)["mean"]
        for support in (None, 20)
    )
    assert 1 - part.low > 5 * (1 - whole.low)


def test_a_model_that_loses_every_sample_has_a_width_too():
    found = bootstrap.paired(mean_of(np.zeros(20)), mean_of(np.ones(20)), 20, metric="mean", resamples=100, seed=0)
    assert (found.value, found.low) == (-1, -1)
    assert found.high == pytest.approx(-0.839, abs=5e-4)


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilsons_interval_holds_its_share_and_always_has_a_width(n, share):
    low, high = bootstrap.wilson(share, n)
    assert 0 <= low < high <= 1
    assert low - 1e-9 <= share <= high + 1e-9
