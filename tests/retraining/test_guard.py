"""The guard: what stops a retraining, and that a further objection never makes a decision milder."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.retraining import policy
from loopline.retraining.guard import Action, Alert, Past, RetrainerState, RetrainingEvidence, decide, rest

POLICY = policy.load(Path(__file__).parents[2] / "monitoring/retraining.yaml")
NOW, HOUR = 1_800_000_000.0, 3600.0
ALERT = Alert(model="digits", name="RetrainCandidate", version="abc")
DRIFT = RetrainingEvidence(drifted=True, harmful=True, labels={"a": 190, "b": 180})
IDLE = RetrainerState()


def test_harmful_drift_with_enough_labels_starts_a_retraining():
    assert decide(ALERT, IDLE, DRIFT, POLICY, NOW).action == "retrain"


EIGHT = (Past(NOW - 400 * HOUR, NOW - 399 * HOUR, "succeeded"),) * 8
RESULTS = st.sampled_from(["succeeded", "refused", "failed"])
STOPS = {  # an objection -> the action, words of its reason, and the changed fields that cause it
    "a forged alert": ("decline", "the sender was not authenticated", {"alert": {"authentic": False}}),
    "a resolved alert": ("decline", "the alert is resolved", {"alert": {"firing": False}}),
    "a resend": ("decline", "already had its run", {"alert": {"seen": True}}),
    "a notice": ("decline", "DriftNotice is a notice", {"alert": {"name": "DriftNotice"}}),
    "black frames": ("decline", "bad data: ConstantInputs fires", {"evidence": {"firing": frozenset({"ConstantInputs"})}}),
    "unreadable inputs": ("decline", "bad data: BadInputs fires", {"evidence": {"firing": frozenset({"BadInputs"})}}),
    "skew": ("decline", "skew:", {"evidence": {"firing": frozenset({"Skew"})}}),
    "a silent sentinel": ("wait", "skew cannot be ruled out", {"evidence": {"firing": frozenset({"SentinelSilent"})}}),
    "drift that is over": ("decline", "the drift is over", {"evidence": {"drifted": False, "harmful": False}}),
    "a harmless shift": ("decline", "a harmless shift", {"evidence": {"harmful": False}}),
    "label shift alone": ("decline", "label shift alone", {"evidence": {"new_mix": True}}),
    "labels that show no harm": ("decline", "labels show no harm", {"evidence": {"accuracy": (0.91, 0.99, 0.9)}}),
    "no Prometheus": ("wait", "the model's state is unknown", {"evidence": {"unknown": "it is down"}}),
    "the kill switch": ("wait", "kill switch", {"state": {"paused": "holiday"}}),
    "a run under way": ("wait", "run r1 is under way", {"state": {"running": "r1"}}),
    "the cool-down": ("wait", "cool-down", {"state": {"past": (Past(NOW - HOUR, NOW - HOUR, "succeeded"),)}}),
    "a spent budget": ("wait", "budget is spent: 8 of 8", {"state": {"past": EIGHT}}),
    "few labels": ("ask-labels", "299 new labels, 300 are needed", {"evidence": {"labels": {"a": 150, "b": 149}}}),
    "a class without labels": ("ask-labels", "these have too few: b 4", {"evidence": {"labels": {"a": 400, "b": 4}}}),
    "no approval": ("await-approval", "a person's approval", {"policy": {"approval": True}}),
}  # fmt: skip


def changed(*names):
    """The arguments of decide, changed so that each of these objections applies."""
    arguments = {"alert": ALERT, "state": IDLE, "evidence": DRIFT, "policy": POLICY}
    for name in names:
        for argument, fields in STOPS[name][2].items():
            if argument == "evidence" and "firing" in fields:
                arguments[argument] = replace(arguments[argument], firing=fields["firing"] | arguments[argument].firing)
            elif argument == "policy":
                arguments[argument] = arguments[argument].model_copy(update=fields)
            else:
                arguments[argument] = replace(arguments[argument], **fields)
    return (*arguments.values(), NOW)


@pytest.mark.parametrize("name", STOPS)
def test_each_objection_alone_stops_a_retraining_and_gives_its_reason(name):
    action, words, _ = STOPS[name]
    decision = decide(*changed(name))
    assert decision.action == action
    assert len(decision.reasons) == 1
    assert words in decision.reasons[0]


def test_an_approved_run_starts():
    alert, _, evidence, demands, now = changed("no approval")
    assert decide(alert, RetrainerState(approved=True), evidence, demands, now).action == "retrain"


def test_an_alert_that_waited_too_long_is_declined():
    alert, _, evidence, demands, now = changed("few labels")
    decision = decide(alert, RetrainerState(waited=demands.patience_hours * HOUR + 1), evidence, demands, now)
    assert decision.action == "decline"
    assert any("99 new labels" in reason for reason in decision.reasons)


def test_labels_that_prove_nothing_do_not_stop_a_retraining():
    undecided = replace(DRIFT, accuracy=(0.85, 0.99, 0.9))
    assert decide(ALERT, IDLE, undecided, POLICY, NOW).action == "retrain"


def test_the_cool_down_doubles_with_each_refusal_until_the_next_success():
    def hours(*results):
        return (rest(tuple(Past(0.0, 0.0, result) for result in results), POLICY)) / HOUR

    assert hours() == 0
    assert [hours(*["refused"] * count) for count in (1, 2, 3)] == [24, 48, 96]
    assert hours("refused", "failed") == 24
    assert hours("refused", "succeeded") == hours("failed") == 12
    assert hours(*["refused"] * 30) == 336


names = st.lists(st.sampled_from(sorted(STOPS)), unique=True)
ORDER = list(Action)


@given(names)
def test_the_strictest_of_several_objections_is_the_decision(chosen):
    decision = decide(*changed(*chosen))
    assert decision == decide(*changed(*chosen)), "the same arguments give the same decision"
    assert (decision.action == "retrain") == (not chosen)
    if chosen and "no Prometheus" not in chosen:
        kinds = {STOPS[name][0] for name in chosen}
        assert decision.action == min(kinds, key=ORDER.index)


@given(names, st.sampled_from(sorted(STOPS)))
def test_one_more_objection_never_makes_the_decision_milder(chosen, more):
    before, after = decide(*changed(*chosen)), decide(*changed(*chosen, more))
    unknown = "no Prometheus" in (*chosen, more)
    assert after.action != "retrain"
    assert unknown or ORDER.index(after.action) <= ORDER.index(before.action)


counts = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 500), max_size=5)
pasts = st.lists(
    st.builds(lambda a, b, r: Past(NOW - a - b, NOW - a, r), st.floats(0, 1e7), st.floats(0, 1e5), RESULTS)
)  # fmt: skip
states = st.builds(
    RetrainerState,
    running=st.none() | st.just("r"),
    paused=st.none() | st.just("p"),
    past=pasts.map(lambda runs: tuple(sorted(runs, key=lambda run: run.started))),
    approved=st.booleans(),
    waited=st.floats(0, 1e7),
)
alerts = st.builds(
    Alert,
    model=st.just("digits"),
    name=st.sampled_from(["RetrainCandidate", "DriftNotice", "Skew"]),
    version=st.just("abc"),
    firing=st.booleans(),
    authentic=st.booleans(),
    seen=st.booleans(),
)
evidences = st.builds(
    RetrainingEvidence,
    unknown=st.none() | st.just("?"),
    firing=st.frozensets(st.sampled_from(["BadInputs", "ConstantInputs", "Skew", "SentinelSilent", "NoTraffic"])),
    drifted=st.booleans(),
    harmful=st.booleans(),
    new_mix=st.booleans(),
    labels=counts,
    accuracy=st.none() | st.tuples(*[st.floats(0, 1)] * 3),
)


@given(alerts, states, evidences)
def test_a_retraining_starts_only_if_every_condition_holds(alert, state, evidence):
    decision = decide(alert, state, evidence, POLICY, NOW)
    assert decision.reasons
    if decision.action == "retrain":
        assert alert.authentic
        assert alert.firing
        assert not alert.seen
        assert alert.name == "RetrainCandidate"
        assert not (state.paused or state.running or evidence.unknown)
        assert not evidence.firing & {"BadInputs", "ConstantInputs", "Skew", "SentinelSilent"}
        assert evidence.drifted
        assert evidence.harmful
        assert not evidence.new_mix
        assert sum(evidence.labels.values()) >= POLICY.labels.total
        assert min(evidence.labels.values()) >= POLICY.labels.per_class
