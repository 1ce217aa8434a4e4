"""Promotion is decided on intervals: a gain must be more than luck, and no slice may pay for it."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loopline.release.promotion import Evidence, Policy, decide
from loopline.tasks.slices import restrict

N = 1000
POLICY = Policy(
    metric="accuracy",
    floors={"accuracy": 0.5},
    min_gain=0.0,
    max_slice_loss=0.03,
    max_size_ratio=1.5,
    max_latency_ratio=1.5,
    resamples=200,
    seed=0,
)


def model(wrong, *, parts=None, **fields):
    """A model that errs on the samples with these numbers."""
    hit = np.ones(N)
    hit[list(wrong)] = 0

    def score(weights=None):
        weights = np.ones(N) if weights is None else weights
        return {"accuracy": float((weights * hit).sum() / weights.sum())}

    masks = {name: np.isin(np.arange(N), list(numbers)) for name, numbers in (parts or {}).items()}
    options = {"version": "v", "test_set": "t", "labels": ("a", "b"), "bytes": 100, "seconds": 0.001} | fields
    return Evidence(
        n=N,
        scorer=score,
        parts={name: (restrict(score, mask), "accuracy") for name, mask in masks.items()},
        **options,
    )


def test_the_first_model_needs_the_floors_only():
    assert decide(model(range(100)), None, POLICY).promote
    decision = decide(model(range(600)), None, POLICY)
    assert not decision.promote
    assert decision.reasons[0].startswith("accuracy 0.4000 may be as low as")


def test_a_floor_is_held_by_the_lower_bound_not_by_the_figure_itself():
    decision = decide(model(range(495)), None, POLICY)  # .505, but it could be .475
    assert not decision.promote


def test_a_floor_on_what_is_not_measured_is_not_held():
    decision = decide(model([]), None, replace(POLICY, floors={"acuracy": 0.5}))
    assert decision.reasons == ("a floor is set for 'acuracy', which is not measured: there are accuracy",)


def test_a_clear_gain_is_promoted():
    decision = decide(model(range(50)), model(range(100)), POLICY)
    assert decision.promote
    assert decision.reasons[0].startswith("accuracy +0.0500 [+0.0")
    assert decision.figures["gain"]["low"] > 0


def test_a_gain_that_may_be_luck_is_refused():
    decision = decide(model(range(300, 398)), model(range(100)), POLICY)  # two more right of 1,000, on other samples
    assert not decision.promote
    assert decision.figures["gain"]["value"] > 0
    assert "no proof of a gain" in decision.reasons[0]


def test_a_worse_challenger_is_refused():
    assert not decide(model(range(100)), model(range(50)), POLICY).promote


def test_a_slice_may_not_pay_for_the_whole():
    parts = {"dark": range(900, 1000)}
    decision = decide(model(range(900, 940), parts=parts), model(range(200), parts=parts), POLICY)
    assert decision.figures["gain"]["low"] > 0
    assert not decision.promote
    assert decision.reasons[0].startswith("dark loses: accuracy -0.4000")


def test_a_slice_that_lost_by_chance_is_no_reason():
    parts = {"dark": range(990, 1000)}
    decision = decide(model([990], parts=parts), model(range(200), parts=parts), POLICY)  # one of ten
    assert decision.promote


def test_a_slice_that_was_not_measured_is_a_reason():
    decision = decide(model(range(50)), model(range(100), parts={"dark": [1]}), POLICY)
    assert decision.reasons == ("dark was not measured for the challenger",)


def test_the_budgets_for_size_and_time_hold():
    champion = model(range(100))
    assert "2.00 times the champion's size" in decide(model([], bytes=200), champion, POLICY).reasons[0]
    assert "3.00 times the champion's time" in decide(model([], seconds=0.003), champion, POLICY).reasons[0]


def test_every_label_of_the_champion_must_be_known():
    decision = decide(model([], labels=("a", "c")), model(range(100)), POLICY)
    assert decision.reasons == ("the champion knows labels that the challenger does not: b",)
    assert decide(model([], labels=("c", "b", "a")), model(range(100)), POLICY).promote


def test_two_test_sets_cannot_be_compared():
    assert not decide(model([], test_set="other"), model(range(100)), POLICY).promote


def test_the_same_evidence_gives_the_same_decision():
    assert decide(model(range(50)), model(range(100)), POLICY) == decide(model(range(50)), model(range(100)), POLICY)


@given(st.sets(st.integers(0, N - 1), max_size=60), st.sets(st.integers(0, N - 1), max_size=60))
def test_two_models_never_beat_each_other(a, b):
    policy = replace(POLICY, resamples=100)
    both = decide(model(a), model(b), policy).promote and decide(model(b), model(a), policy).promote
    assert not both or a == b


def test_a_metric_that_cannot_be_computed_is_refused():
    broken = replace(model([]), scorer=lambda _: {"accuracy": float("nan")})
    decision = decide(broken, model(range(100)), POLICY)
    assert not decision.promote
    assert decision.figures["gain"] == {"value": None, "low": None, "high": None}
