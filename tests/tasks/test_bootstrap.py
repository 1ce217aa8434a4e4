"""Intervals cover the truth as often as they promise, and a paired interval shows a gain that two separate ones hide."""

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


def test_intervals_of_95_percent_cover_the_truth_about_that_often():
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        interval = bootstrap.intervals(mean_of(generator.random(100) < 0.8), 100, resamples=200, seed=trial)["mean"]
        hits += interval.low <= 0.8 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval():
    values = np.arange(50.0)
    first, second = (bootstrap.intervals(mean_of(values), 50, resamples=100, seed=3) for _ in range(2))
    assert first == second


def test_only_a_paired_interval_shows_a_small_gain_on_every_sample():
    generator = np.random.default_rng(1)
    base = generator.normal(size=200)
    better = base + 0.05 + 0.01 * generator.normal(size=200)
    pair = bootstrap.paired(mean_of(better), mean_of(base), 200, metric="mean", resamples=500, seed=0)
    alone = bootstrap.intervals(mean_of(better), 200, resamples=500, seed=0)["mean"]
    assert pair.low > 0.04
    assert alone.low < base.mean()


def test_equal_models_differ_by_exactly_zero():
    values = np.random.default_rng(2).random(30)
    assert bootstrap.paired(
        mean_of(values), mean_of(values), 30, metric="mean", resamples=100, seed=0
    ) == bootstrap.Interval(0, 0, 0)


def test_a_metric_that_some_resamples_cannot_give_still_has_an_interval():
    def score(weights=None):
        return {"rare": 0.5 if weights is None or weights[0] else float("nan")}

    interval = bootstrap.intervals(score, 20, resamples=100, seed=0)["rare"]
    assert 0 < interval.low < 0.5 < interval.high < 1
    assert 20 < interval.dropped < 55  # .95**20 = .36 of the resamples are without the first of 20 samples
    assert interval.rounded()["dropped"] == interval.dropped


def test_few_samples_without_an_error_still_have_a_wide_interval():
    for n, low in ((3, 0.438), (20, 0.839), (361, 0.9895)):
        interval = bootstrap.intervals(mean_of(np.ones(n)), n, resamples=100, seed=0)["mean"]
        assert (interval.value, interval.high) == (1, 1)
        assert interval.low == pytest.approx(low, abs=5e-4)


def test_few_samples_without_a_hit_still_have_a_wide_interval():
    interval = bootstrap.intervals(mean_of(np.zeros(20)), 20, resamples=100, seed=0)["mean"]
    assert (interval.value, interval.low) == (0, 0)
    assert interval.high == pytest.approx(0.161, abs=5e-4)


def test_the_interval_of_a_slice_is_wider_because_it_has_fewer_samples():
    everything, part = (
        bootstrap.intervals(mean_of(np.ones(300)), 300, resamples=100, seed=0, support=support)["mean"]
        for support in (None, 20)
    )
    assert 1 - part.low > 5 * (1 - everything.low)


def test_the_interval_of_a_model_that_loses_every_sample_has_a_width():
    interval = bootstrap.paired(mean_of(np.zeros(20)), mean_of(np.ones(20)), 20, metric="mean", resamples=100, seed=0)
    assert (interval.value, interval.low) == (-1, -1)
    assert interval.high == pytest.approx(-0.839, abs=5e-4)


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilsons_interval_contains_its_share_and_always_has_a_width(n, share):
    low, high = bootstrap.wilson(share, n)
    assert 0 <= low < high <= 1
    assert low - 1e-9 <= share <= high + 1e-9
