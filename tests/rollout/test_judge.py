"""The judge: which evidence stops a rollout, which holds it, and which passes."""

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from loopline.rollout import judge
from loopline.rollout.judge import LaneCounts, RolloutEvidence, RolloutPolicy, Shadow

POLICY = RolloutPolicy(requests=200, slice=10, points=20)
RNG = np.random.default_rng(0)


def lane(requests=400, errors=0, slower=1.0, seed=0, **more):
    more = {"classes": {"0": 500, "1": 500}} | more
    seconds = 0.005 * slower * np.exp(np.random.default_rng(seed).normal(0, 0.4, requests))
    return LaneCounts(requests=requests, errors=errors, step=requests, seconds=seconds, **more)


def evidence(challenger=None, baseline=None, **more):
    return RolloutEvidence(challenger=challenger or lane(seed=1), baseline=baseline or lane(), **more)


def test_equal_lanes_pass_with_their_figures():
    verdict = judge.canary(evidence(), POLICY)
    assert verdict.action == "pass"
    assert "errors 0.00% against 0.00%" in verdict.reasons


@pytest.mark.parametrize(
    ("canary", "reason"),
    [
        (evidence(sick="0 of 1 servers are alive"), "0 of 1 servers"),
        (evidence(invalid=1), "not a number"),
        (evidence(lane(10, errors=10)), "10 of 10 requests failed"),
        (evidence(expected=nan), "not a number"),
        (evidence(lane(right=inf)), "not a number"),
    ],
)
def test_a_hard_stop_needs_no_minimum(canary, reason):
    verdict = judge.canary(canary, POLICY)
    assert verdict.action == "roll back"
    assert reason in verdict.reasons[0]


def test_errors_in_both_lanes_do_not_count_against_the_challenger():
    assert judge.canary(evidence(lane(errors=300), lane(errors=300)), POLICY).action == "pass"


def test_more_errors_than_chance_roll_back_long_before_the_minimum():
    verdict = judge.canary(evidence(lane(150, errors=14), lane(150)), replace(POLICY, requests=10_000))
    assert verdict.action == "roll back"
    assert "more than chance" in verdict.reasons[0]


def test_errors_that_are_not_clear_hold():
    verdict = judge.canary(evidence(lane(errors=4), lane()), POLICY)
    assert verdict.action == "hold"
    assert "not clear" in verdict.reasons[0]


def test_slower_than_allowed_rolls_back_and_within_the_limit_passes():
    policy = replace(POLICY, requests=2000, slice=40, points=50)
    slow, fine = (judge.canary(evidence(lane(4000, slower=x, seed=1), lane(4000)), policy) for x in (1.25, 1.03))
    assert slow.action == "roll back"
    assert "latency" in slow.reasons[0]
    assert fine.action == "pass"


def test_a_few_terrible_slices_decide_nothing():
    challenger = lane(seed=1)
    challenger.seconds[:10] = 60.0
    assert judge.canary(evidence(challenger), POLICY).action == "pass"


def test_too_few_points_of_latency_hold():
    assert "points of latency" in judge.canary(evidence(lane(190)), POLICY).reasons[0]


def test_labelled_answers_count_if_there_are_any():
    good, bad = lane(labelled=5000, right=4600), lane(seed=1, labelled=5000, right=4000)
    assert judge.canary(evidence(bad, good), POLICY).action == "roll back"
    assert judge.canary(evidence(good, bad), POLICY).action == "pass"
    assert judge.canary(evidence(lane(seed=1)), POLICY).action == "pass", "no labels are no evidence"
    demanding = replace(POLICY, labels=6000)
    assert judge.canary(evidence(good, good), demanding).action == "hold"
    a_bit_worse = lane(seed=1, labelled=7000, right=6330)
    other = lane(labelled=7000, right=6440)
    assert judge.canary(evidence(a_bit_worse, other), demanding).action == "hold", "neither clear nor harmless"


def test_classes_that_differ_more_than_in_the_shadow_roll_back():
    baseline, moved = lane(classes={"0": 500, "1": 500}), lane(seed=1, classes={"0": 900, "1": 100})
    verdict = judge.canary(evidence(moved, baseline), POLICY)
    assert verdict.action == "roll back"
    assert "classes" in verdict.reasons[0]
    assert judge.canary(evidence(moved, baseline, expected=0.4), POLICY).action == "pass"
    assert judge.canary(evidence(lane(seed=1, classes={"0": 5, "1": 1}), baseline), POLICY).action == "pass", "chance"


def test_requests_without_counted_classes_hold():
    for uncounted in (evidence(lane(seed=1, classes={})), evidence(baseline=lane(classes={"0": 0.0}))):
        verdict = judge.canary(uncounted, POLICY)
        assert verdict.action == "hold"
        assert "cannot be read" in verdict.reasons[0]
    nothing_yet = lane(0, classes={"0": 0.0})
    assert "points of latency" in judge.canary(evidence(nothing_yet, nothing_yet), POLICY).reasons[0]


def shadow(**more):
    harmless = {"inputs": 200, "failed": 0, "invalid": 0, "agreed": 100, "ratios": np.ones(200)}
    return Shadow(**harmless | more)


@pytest.mark.parametrize(
    ("replay", "action"),
    [
        (shadow(), "pass"),
        (shadow(agreed=0), "pass"),
        (shadow(inputs=50), "hold"),
        (shadow(failed=1), "roll back"),
        (shadow(invalid=1), "roll back"),
        (shadow(sick="down"), "roll back"),
        (shadow(ratios=np.full(200, 2.0)), "roll back"),
        (shadow(ratios=np.full(200, nan)), "roll back"),
    ],
)
def test_shadow_stops_on_faults_and_not_on_different_answers(replay, action):
    assert judge.shadow(replay, POLICY).action == action


@given(challenger=st.integers(0, 300), baseline=st.integers(0, 300), more=st.integers(0, 100))
def test_more_errors_never_turn_a_rollback_into_anything_else(challenger, baseline, more):
    before = judge.canary(evidence(lane(errors=challenger), lane(errors=baseline)), POLICY)
    after = judge.canary(evidence(lane(errors=min(400, challenger + more)), lane(errors=baseline)), POLICY)
    order = ["pass", "hold", "roll back"]
    assert order.index(after.action) >= order.index(before.action)


@given(
    wrong=st.sampled_from([nan, inf, -inf]),
    place=st.sampled_from(["seconds", "errors", "requests", "step", "labelled", "right", "classes"]),
    in_challenger=st.booleans(),
)
def test_a_figure_that_is_not_a_number_is_a_hard_stop_wherever_it_is(wrong, place, in_challenger):
    values = {"seconds": np.array([0.01] * 399 + [wrong]), "classes": {"0": 1.0, "1": wrong}}
    broken = replace(lane(), **{place: values.get(place, wrong)})
    canary = evidence(challenger=broken) if in_challenger else evidence(baseline=broken)
    assert judge.canary(canary, POLICY).action == "roll back"


@given(n=st.integers(0, 199), errors=st.integers(0, 5), labels=st.integers(0, 50))
def test_fewer_requests_than_the_minimum_never_pass(n, errors, labels):
    few = lane(n, errors=min(n, errors), labelled=labels, right=labels)
    for canary in (evidence(challenger=few), evidence(baseline=few)):
        assert judge.canary(canary, replace(POLICY, points=0)).action != "pass"


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.lists(st.integers(0, 6), min_size=2, max_size=40))
def test_mann_whitney_agrees_with_scipy(a, b):
    a, b = np.array(a, float), np.array(b, float)
    if len({*a, *b}) > 1:
        expected = scipy.stats.mannwhitneyu(a, b, alternative="greater", method="asymptotic").pvalue
        assert judge.mann_whitney(a, b) == pytest.approx(expected)
    else:
        assert judge.mann_whitney(a, b) == 1.0


def test_the_shift_between_two_samples_is_found():
    a = RNG.normal(0, 1, 2000)
    assert judge.hodges_lehmann(a + 0.5, a) == pytest.approx(0.5, abs=0.01)


def test_looking_after_every_error_still_alarms_as_seldom_as_promised():
    alarms = 0
    for _ in range(2000):
        errors = np.cumsum(RNG.random(200) < 0.5)
        alarms += any(judge.evalue(int(k), n + 1 - int(k)) >= 20 for n, k in enumerate(errors))
    assert alarms / 2000 <= 0.05


def test_looking_after_every_hundred_labels_still_alarms_as_seldom_as_promised():
    alarms = 0
    for _ in range(1000):
        a, b = (np.cumsum(RNG.binomial(100, 0.9, 50)) for _ in range(2))
        for n, (x, y) in enumerate(zip(a, b, strict=True), start=1):
            challenger, baseline = (LaneCounts(labelled=100.0 * n, right=float(right)) for right in (x, y))
            if (y - x) / (100 * n) > judge.lost_by_chance(challenger, baseline, 0.05):
                alarms += 1
                break
    assert alarms / 1000 <= 0.06


def test_labels_that_came_between_two_readings_of_the_counters_are_no_error():
    canary = evidence(lane(labelled=10, right=14), lane(labelled=10, right=9))
    assert judge.canary(canary, POLICY).action == "pass"


@pytest.mark.parametrize(("errors", "action"), [(20, "pass"), (60, "roll back")])
def test_a_challenger_may_have_its_share_of_the_errors(errors, action):
    canary = evidence(lane(2000, errors=errors), lane(38000, errors=380), share=0.05)
    assert judge.canary(canary, POLICY).action == action


def test_with_a_small_share_chance_passes_the_bound_as_rarely_as_promised():
    """A thousand streams of 2,000 errors; each error falls to the challenger with probability 0.05."""
    errors = (np.random.default_rng(5).random((1000, 2000)) < 0.05).cumsum(axis=1)
    looks = range(19, 2000, 60)
    passed = [any(judge.evalue(int(row[n]), int(n + 1 - row[n]), 0.05) >= 100 for n in looks) for row in errors]
    assert np.mean(passed) <= 0.01
