"""May this alert start a retraining? A pure function from alert, state and evidence to a decision with its reasons.

Objections are of four kinds, the worst one is the decision: *decline* is final for this alert; *wait*, *ask-labels* and
*await-approval* are looked at again, until the alert is over or the policy's patience is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from loopline.retraining.policy import RetrainingPolicy

BAD_DATA = frozenset({"BadInputs", "ConstantInputs"})
SKEW = frozenset({"Skew"})
BLIND = frozenset({"SentinelSilent"})
DAY = 86400.0


class Action(StrEnum):
    """What comes of an alert, the worst first."""

    DECLINE = "decline"
    WAIT = "wait"
    ASK_LABELS = "ask-labels"
    AWAIT_APPROVAL = "await-approval"
    RETRAIN = "retrain"


@dataclass(frozen=True, kw_only=True)
class Alert:
    """An alert as it came. version: of the bundle, as the servers export it. seen: this start of it had its run."""

    model: str
    name: str
    version: str
    firing: bool = True
    authentic: bool = True
    seen: bool = False


@dataclass(frozen=True)
class Past:
    """A run that ended. times: seconds of the epoch. result: succeeded, refused or failed."""

    started: float
    ended: float
    result: str


@dataclass(frozen=True, kw_only=True)
class RetrainerState:
    """Where the retrainer stands. past: this model's runs, oldest first. waited: seconds since the alert came."""

    running: str | None = None
    paused: str | None = None
    past: tuple[Past, ...] = ()
    approved: bool = False
    waited: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RetrainingEvidence:
    """What is known now.

    unknown: why nothing is, the rest is then not looked at. firing: names of this model's other alerts. drifted, harmful: as the rules
    say now. new_mix: a new mix of the same classes explains all of it. labels: class -> labels since the last training, every class
    that the model knows is there. accuracy: bounds on the labelled quality, and the least that is no harm.
    """

    unknown: str | None = None
    firing: frozenset[str] = frozenset()
    drifted: bool = False
    harmful: bool = False
    new_mix: bool = False
    labels: Mapping[str, int] = field(default_factory=dict)
    accuracy: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class RetrainingDecision:
    """What is to be done, and why."""

    action: Action
    reasons: tuple[str, ...]


Objections = list[tuple[Action, str]]


def decide(
    alert: Alert, state: RetrainerState, evidence: RetrainingEvidence, policy: RetrainingPolicy, now: float
) -> RetrainingDecision:
    """The decision at time `now` (seconds of the epoch)."""
    found = _alert(alert, policy) + _state(state, policy, now)
    if evidence.unknown:
        found.append((Action.WAIT, f"nothing is known of the model's state: {evidence.unknown}"))
    else:
        found += _cause(evidence) + _labels(evidence, policy)
    if policy.approval and not state.approved:
        found.append((Action.AWAIT_APPROVAL, "the policy wants a person's approval"))
    if found and state.waited > policy.patience_hours * 3600:
        found.append((Action.DECLINE, f"it waited for over {policy.patience_hours:g} h"))
    if not found:
        return RetrainingDecision(Action.RETRAIN, ("harm that holds, not of bad data, skew or a new mix of classes",))
    worst = min((action for action, _ in found), key=list(Action).index)
    return RetrainingDecision(
        worst, tuple(reason for _, reason in sorted(found, key=lambda one: list(Action).index(one[0])))
    )


def _alert(alert: Alert, policy: RetrainingPolicy) -> Objections:
    found = []
    if not alert.authentic:
        found.append("nobody knows who sent it")
    if not alert.firing:
        found.append("it is over")
    if alert.seen:
        found.append("it had its run")
    if alert.name not in policy.alerts:
        found.append(f"{alert.name} is a notice, no reason to retrain: the policy names {', '.join(policy.alerts)}")
    return [(Action.DECLINE, reason) for reason in found]


def _cause(evidence: RetrainingEvidence) -> Objections:
    found: Objections = []
    if bad := sorted(evidence.firing & BAD_DATA):
        found.append((Action.DECLINE, f"bad data: {', '.join(bad)} fires; a model that learns from it is broken too"))
    if evidence.firing & SKEW:
        found.append((Action.DECLINE, "skew: the model does not answer as it did in training, new data mends nothing"))
    if evidence.firing & BLIND:
        found.append((Action.WAIT, "the sentinel is silent: whether it is skew cannot be told"))
    if evidence.accuracy and evidence.accuracy[1] < evidence.accuracy[2]:
        return found  # labels show harm: what the inputs look like does not matter then
    if not evidence.drifted:
        found.append((Action.DECLINE, "the drift is over, and no label shows harm"))
    elif not evidence.harmful:
        found.append((Action.DECLINE, "a harmless shift: no loss is estimated, a notice will do"))
    if evidence.new_mix:
        found.append((Action.DECLINE, "label shift alone: a new mix of the same classes explains it"))
    if evidence.accuracy and evidence.accuracy[0] >= evidence.accuracy[2]:
        low, high, least = evidence.accuracy
        found.append(
            (Action.DECLINE, f"labels say no harm: quality is in [{low:.3f}, {high:.3f}], harm is under {least:.3f}")
        )
    return found


def _state(state: RetrainerState, policy: RetrainingPolicy, now: float) -> Objections:
    found = []
    if state.paused:
        found.append(f"the kill switch is on: {state.paused}")
    if state.running:
        found.append(f"run {state.running} is under way")
    if (left := rest(state.past, policy) - now) > 0:
        found.append(f"the cool-down after the last run has {left / 3600:.1f} h left")
    month = [one for one in state.past if one.started > now - 30 * DAY]
    if len(month) >= policy.runs_per_month:
        found.append(f"the budget is spent: {len(month)} of {policy.runs_per_month} runs in 30 days")
    return [(Action.WAIT, reason) for reason in found]


def rest(past: tuple[Past, ...], policy: RetrainingPolicy) -> float:
    """When the cool-down ends (seconds of the epoch; 0 without a run). Every refused candidate since the last success doubles it."""
    if not past:
        return 0.0
    refused = 0
    for one in reversed(past):
        if one.result == "succeeded":
            break
        refused += one.result == "refused"
    hours = min(policy.cooldown_hours * 2.0**refused, policy.longest_cooldown_hours)
    return past[-1].ended + hours * 3600


def _labels(evidence: RetrainingEvidence, policy: RetrainingPolicy) -> Objections:
    counts, found = evidence.labels, []
    if (total := sum(counts.values())) < policy.labels.total:
        found.append(f"{total} new labels, {policy.labels.total} are needed")
    few = {name: count for name, count in sorted(counts.items()) if count < policy.labels.per_class}
    if few:
        some = ", ".join(f"{name} {count}" for name, count in list(few.items())[:10])
        found.append(f"each class needs {policy.labels.per_class} new labels; too few have: {some}")
    return [(Action.ASK_LABELS, reason) for reason in found]
