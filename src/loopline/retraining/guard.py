"""The guard: decide whether an alert may start a retraining. A pure function from alert, state and evidence to a decision.

Each objection calls for one of four actions, and the strictest of these is the decision. *decline* is final for this alert.
*wait*, *ask-labels* and *await-approval* are reconsidered until the alert is resolved or the policy's patience ends.
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
    """What the guard decides on an alert, the strictest first."""

    DECLINE = "decline"
    WAIT = "wait"
    ASK_LABELS = "ask-labels"
    AWAIT_APPROVAL = "await-approval"
    RETRAIN = "retrain"


@dataclass(frozen=True, kw_only=True)
class Alert:
    """An alert as it was received.

    version: the bundle's version as the servers export it. firing: false once it is resolved. authentic: the sender was
    authenticated. seen: this start of the alert already had its run.
    """

    model: str
    name: str
    version: str
    firing: bool = True
    authentic: bool = True
    seen: bool = False


@dataclass(frozen=True)
class Past:
    """A run that ended. started, ended: seconds since the epoch. result: succeeded, refused or failed."""

    started: float
    ended: float
    result: str


@dataclass(frozen=True, kw_only=True)
class RetrainerState:
    """The state of the retrainer.

    running: the id of the run under way. paused: the reason for the pause. past: this model's ended runs, oldest first.
    approved: a person approved the run. waited: seconds since the alert was received.
    """

    running: str | None = None
    paused: str | None = None
    past: tuple[Past, ...] = ()
    approved: bool = False
    waited: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RetrainingEvidence:
    """What is known about the model at this moment.

    unknown: why the evidence cannot be had; the other fields are then ignored. firing: names of this model's firing alerts.
    drifted, harmful: what the alert rules say now. new_mix: a new mix of the same classes explains the whole drift.
    labels: class -> number of labels since the last training, with a 0 for a class without any. accuracy: lower and upper bound
    of the quality on labelled samples, and the least quality that is no harm; None without labels.
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
    """The action to take, and the reasons for it."""

    action: Action
    reasons: tuple[str, ...]


Objections = list[tuple[Action, str]]


def decide(
    alert: Alert, state: RetrainerState, evidence: RetrainingEvidence, policy: RetrainingPolicy, now: float
) -> RetrainingDecision:
    """The decision at the time `now` (seconds since the epoch)."""
    objections = _alert(alert, policy) + _state(state, policy, now)
    if evidence.unknown:
        objections.append((Action.WAIT, f"the model's state is unknown: {evidence.unknown}"))
    else:
        objections += _cause(evidence) + _labels(evidence, policy)
    if policy.approval and not state.approved:
        objections.append((Action.AWAIT_APPROVAL, "the policy requires a person's approval"))
    if objections and state.waited > policy.patience_hours * 3600:
        objections.append((Action.DECLINE, f"the alert has waited for over {policy.patience_hours:g} h"))
    if not objections:
        return RetrainingDecision(
            Action.RETRAIN, ("lasting harm, and neither bad data, skew nor a new mix of classes explains it",)
        )
    objections.sort(key=lambda objection: list(Action).index(objection[0]))
    return RetrainingDecision(objections[0][0], tuple(reason for _, reason in objections))


def _alert(alert: Alert, policy: RetrainingPolicy) -> Objections:
    reasons = []
    if not alert.authentic:
        reasons.append("the sender was not authenticated")
    if not alert.firing:
        reasons.append("the alert is resolved")
    if alert.seen:
        reasons.append("the alert already had its run")
    if alert.name not in policy.alerts:
        reasons.append(
            f"{alert.name} is a notice and starts no retraining: the policy names {', '.join(policy.alerts)}"
        )
    return [(Action.DECLINE, reason) for reason in reasons]


def _cause(evidence: RetrainingEvidence) -> Objections:
    objections: Objections = []
    if bad := sorted(evidence.firing & BAD_DATA):
        objections.append(
            (Action.DECLINE, f"bad data: {', '.join(bad)} fires, and training on it would break the model")
        )
    if evidence.firing & SKEW:
        objections.append(
            (Action.DECLINE, "skew: the model does not answer as it did in training, and new data cannot mend that")
        )
    if evidence.firing & BLIND:
        objections.append((Action.WAIT, "the sentinel is silent, so skew cannot be ruled out"))
    if evidence.accuracy and evidence.accuracy[1] < evidence.accuracy[2]:
        return objections  # labels prove harm, so the inputs need not show it
    if not evidence.drifted:
        objections.append((Action.DECLINE, "the drift is over, and labels do not show harm"))
    elif not evidence.harmful:
        objections.append((Action.DECLINE, "a harmless shift: no loss of quality is estimated, so a notice is enough"))
    if evidence.new_mix:
        objections.append((Action.DECLINE, "label shift alone: a new mix of the same classes explains it"))
    if evidence.accuracy and evidence.accuracy[0] >= evidence.accuracy[2]:
        low, high, least = evidence.accuracy
        objections.append(
            (
                Action.DECLINE,
                f"labels show no harm: quality is in [{low:.3f}, {high:.3f}], harm is below {least:.3f}",
            )
        )
    return objections


def _state(state: RetrainerState, policy: RetrainingPolicy, now: float) -> Objections:
    reasons = []
    if state.paused:
        reasons.append(f"the kill switch is on: {state.paused}")
    if state.running:
        reasons.append(f"run {state.running} is under way")
    if (seconds_left := rest(state.past, policy) - now) > 0:
        reasons.append(f"the cool-down after the last run has {seconds_left / 3600:.1f} h left")
    month = [run for run in state.past if run.started > now - 30 * DAY]
    if len(month) >= policy.runs_per_month:
        reasons.append(f"the budget is spent: {len(month)} of {policy.runs_per_month} runs in 30 days")
    return [(Action.WAIT, reason) for reason in reasons]


def rest(past: tuple[Past, ...], policy: RetrainingPolicy) -> float:
    """When the cool-down ends, in seconds since the epoch; 0 without a run. Each refusal since the last success doubles it."""
    if not past:
        return 0.0
    refused = 0
    for run in reversed(past):
        if run.result == "succeeded":
            break
        refused += run.result == "refused"
    hours = min(policy.cooldown_hours * 2.0**refused, policy.longest_cooldown_hours)
    return past[-1].ended + hours * 3600


def _labels(evidence: RetrainingEvidence, policy: RetrainingPolicy) -> Objections:
    counts, reasons = evidence.labels, []
    if (total := sum(counts.values())) < policy.labels.total:
        reasons.append(f"{total} new labels, {policy.labels.total} are needed")
    few = {name: count for name, count in sorted(counts.items()) if count < policy.labels.per_class}
    if few:
        examples = ", ".join(f"{name} {count}" for name, count in list(few.items())[:10])
        reasons.append(f"each class needs {policy.labels.per_class} new labels; these have too few: {examples}")
    return [(Action.ASK_LABELS, reason) for reason in reasons]
