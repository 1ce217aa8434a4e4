"""Promotion is decided on intervals: a gain must be more than chance, and no slice may lose for it."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loopline.release.promotion import LEAST_NEW, Present, PromotionEvidence, PromotionPolicy, decide
from loopline.tasks.slices import restrict

N = 1000
POLICY = PromotionPolicy(
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
    """The evidence of a model that is wrong on the samples with these numbers."""
    hit = np.ones(N)
    hit[list(wrong)] = 0

    def score(weights=None):
        weights = np.ones(N) if weights is None else weights
        return {"accuracy": float((weights * hit).sum() / weights.sum())}

    masks = {name: np.isin(np.arange(N), list(numbers)) for name, numbers in (parts or {}).items()}
    options = {"version": "v", "test_set": "t", "labels": ("a", "b"), "bytes": 100, "seconds": 0.001} | fields
    return PromotionEvidence(
        n=N,
        scorer=score,
        parts={name: (restrict(score, mask), "accuracy") for name, mask in masks.items()},
        **options,
    )


def test_the_first_model_must_only_hold_the_floors():
    assert decide(model(range(100)), None, POLICY).promote
    decision = decide(model(range(600)), None, POLICY)
    assert not decision.promote
    assert decision.reasons[0].startswith("accuracy 0.4000 may be as low as")


def test_a_floor_is_held_by_the_lower_bound_not_by_the_figure_itself():
    decision = decide(model(range(495)), None, POLICY)  # 0.505, but it may be as low as 0.475
    assert not decision.promote


def test_a_floor_on_an_unmeasured_metric_is_not_held():
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


def test_a_slice_that_lost_by_chance_refuses_nothing():
    parts = {"dark": range(990, 1000)}
    decision = decide(model([990], parts=parts), model(range(200), parts=parts), POLICY)  # one of ten
    assert decision.promote


def test_a_slice_that_was_not_measured_is_a_reason():
    decision = decide(model(range(50)), model(range(100), parts={"dark": [1]}), POLICY)
    assert decision.reasons == ("dark was not measured for the challenger",)


def test_a_slice_too_small_to_judge_is_named_and_refuses_nothing():
    champion = model(range(100, 200), parts={}, small={"size high": 1})
    decision = decide(model([0], small={"size high": 1}), champion, POLICY)
    assert decision.promote
    assert decision.figures["too_small_to_judge"] == {"size high": 1}


def test_the_budgets_for_size_and_time_hold():
    champion = model(range(100))
    assert "2.00 times the champion's size" in decide(model([], bytes=200), champion, POLICY).reasons[0]
    assert "3.00 times the champion's time" in decide(model([], seconds=0.003), champion, POLICY).reasons[0]


def test_every_label_of_the_champion_must_be_known():
    decision = decide(model([], labels=("a", "c")), model(range(100)), POLICY)
    assert decision.reasons == ("the champion knows labels that the challenger does not: b",)
    assert decide(model([], labels=("c", "b", "a")), model(range(100)), POLICY).promote


def test_results_on_two_test_sets_cannot_be_compared():
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
    assert decision.figures["gain"] == {"value": None, "low": None, "high": None, "dropped": 200}


# After an alert: on the present traffic


OLD = 900  # samples of the old part; the last 100 came with the newest labelled batch


def now(*, share=1.0, new=range(OLD, N)):
    return Present(new=np.isin(np.arange(N), list(new)), batch=10 * len(new), share=share, requests=1000)


def errors(old, new):
    """The numbers of the samples that a model is wrong on: the first `old` and `new` ones of each part."""
    return [*range(old), *range(OLD, OLD + new)]


def after_an_alert(challenger, champion, policy=POLICY, **present):
    return decide(model(errors(*challenger)), model(errors(*champion)), policy, now(**present))


def test_a_gain_on_the_present_traffic_is_enough_if_the_old_part_holds():
    challenger, champion = (109, 26), (100, 38)  # loses one point on the old part and gains twelve on the new one
    assert not decide(model(errors(*challenger)), model(errors(*champion)), POLICY).promote, (
        "there is no gain on all samples"
    )
    decision = after_an_alert(challenger, champion)
    assert decision.promote
    assert decision.reasons[0].startswith("new part, 100% of the latest 1,000 requests: accuracy +0.1200 [+0.0")
    assert decision.reasons[1].startswith("old part, 0% of the latest 1,000 requests: accuracy -0.0100 [-0.0")
    assert decision.figures["present"]["new"]["n"] == 100


def test_a_loss_on_the_old_part_is_refused_whatever_the_new_part_gains():
    decision = after_an_alert((145, 0), (100, 60))
    assert decision.figures["present"]["new"]["gain"]["low"] > 0.4
    assert not decision.promote
    assert decision.reasons[0].startswith("the old part may lose more than 0.03: accuracy -0.0500")


def test_a_loss_on_the_old_part_that_may_be_too_large_is_refused():
    decision = after_an_alert((125, 0), (100, 60))  # loses 0.028, but it may be 0.04
    assert [reason for reason in decision.reasons if "may lose more" in reason]


def test_a_gain_on_the_new_part_that_may_be_luck_is_refused_with_the_number_that_would_prove_it():
    decision = decide(model([*range(OLD, OLD + 30)]), model([*range(OLD + 5, OLD + 38)]), POLICY, now())
    assert not decision.promote
    assert "no proof of a gain in accuracy on the new part: +0.0300 [-0.0" in decision.reasons[0]
    needed = int(decision.reasons[0].split("about ")[1].split(" test samples")[0])
    assert 100 < needed < 1000


def test_no_change_on_the_new_part_is_no_gain_however_much_the_old_part_gains():
    decision = after_an_alert((0, 30), (200, 30))
    assert decision.figures["gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert [reason for reason in decision.reasons if "no proof of a gain in accuracy on the new part" in reason]


def test_a_challenger_that_learned_flipped_labels_of_the_new_part_is_refused():
    decision = after_an_alert((100, 62), (100, 38))
    assert not decision.promote
    assert "no proof of a gain in accuracy on the new part: -0.2400" in " ".join(decision.reasons)


def test_too_few_new_test_samples_are_refused_with_the_number_that_is_needed():
    few = range(N - LEAST_NEW + 10, N)
    decision = decide(model([]), model(few), POLICY, now(new=few))
    assert not decision.promote
    assert decision.reasons[0] == (
        "the newest labelled batch has 20 samples in the test split, 30 are needed: label about 100 more"
    )
    assert decide(model([]), model(range(N - LEAST_NEW, N)), POLICY, now(new=range(N - LEAST_NEW, N))).promote


def test_a_floor_binds_where_the_champion_holds_it_in_the_present_traffic():
    policy = replace(POLICY, floors={"accuracy": 0.75})
    challenger, champion = (100, 26), (100, 38)
    lifted = after_an_alert(challenger, champion, policy)  # 0.74 against 0.62 at present, and 0.89 before
    assert lifted.promote
    assert "the champion does not hold the floor either: accuracy 0.6200 may be as low as" in lifted.reasons[0]
    held = after_an_alert((200, 41), (100, 60), policy, share=0.1)
    assert [reason for reason in held.reasons if reason.startswith("accuracy 0.7590 may be as low as")]
    assert after_an_alert(challenger, champion, policy, share=0.1).promote


def test_the_parts_are_weighted_by_the_traffic_and_every_decision_states_the_weights():
    for share in (0.0, 0.25, 1.0):
        decision = after_an_alert((90, 20), (90, 60), share=share)
        assert decision.figures["gain"]["value"] == round(0.4 * share, 4)
        assert f"new part, {share:.0%} of the latest 1,000 requests" in " ".join(decision.reasons)
    refused = after_an_alert((90, 60), (90, 60), share=0.25)
    assert not refused.promote
    assert [reason for reason in refused.reasons if reason.startswith("old part, 75% of the latest 1,000 requests")]


def test_without_an_alert_all_samples_count_alike():
    challenger, champion = model(errors(50, 10)), model(errors(100, 0))
    assert decide(challenger, champion, POLICY) == decide(challenger, champion, POLICY, None)
    assert "present" not in decide(challenger, champion, POLICY).figures


def test_an_alert_waives_neither_labels_nor_slices_nor_budgets():
    champion = model(errors(100, 60), parts={"dark": range(100)})
    challenger = model(errors(0, 0), labels=("a",), bytes=200)
    reasons = " ".join(decide(challenger, champion, POLICY, now()).reasons)
    assert "the champion knows labels that the challenger does not: b" in reasons
    assert "dark was not measured for the challenger" in reasons
    assert "2.00 times the champion's size" in reasons
