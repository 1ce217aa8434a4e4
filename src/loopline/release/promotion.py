"""Decide whether the challenger may replace the champion: a pure function of the evidence on one test set, with reasons.

Quality is never judged by a point estimate alone; the budgets of time and size are plain ratios. A gain is judged by the lower
bound of its 95 % paired bootstrap interval, a floor by the lower bound of the challenger's metric, and a slice counts as lost if
the interval of its change lies entirely below zero.

A challenger that follows an alert is judged on the present traffic. Its gain must be proven on the newest labelled batch, the
lower bound of its change on all older samples must not be under -max_slice_loss, and a floor binds only if the champion holds it
too. Floors are measured on both parts, weighted by their shares of the traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil, isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.tasks import bootstrap
from loopline.tasks.bootstrap import Interval, Scorer
from loopline.tasks.slices import restrict

PART_RESAMPLES = 200  # enough for the interval of a slice; more would be slow, because there are many slices
LEAST_NEW = 30  # test samples of the newest batch, because an interval from fewer is too wide


@dataclass(frozen=True, kw_only=True)
class PromotionEvidence:
    """The evidence of one model on the test set.

    version: version of its bundle. test_set: hash of the samples and their labels. n: number of samples. labels: labels that the
    model knows. scorer: function that computes its metrics. parts: name of a slice or class -> scorer and the metric that counts
    there. small: slice or class with too few samples to judge -> their number. bytes: size of the ONNX file. seconds: median time
    of one answer, measured side by side with the other model.
    """

    version: str
    test_set: str
    n: int
    labels: tuple[str, ...]
    scorer: Scorer
    parts: Mapping[str, tuple[Scorer, str]]
    bytes: int
    seconds: float
    small: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Present:
    """The present traffic.

    new: bool (n,), true for the test samples of the newest labelled batch. batch: number of samples of that batch in all splits.
    share: share of the latest requests that came after the batch's first sample was served, 0 to 1. requests: how many latest
    requests were counted.
    """

    new: NDArray[np.bool_]
    batch: int
    share: float
    requests: int

    @property
    def weights(self) -> NDArray[np.float64]:
        """The weights of the test samples, (n,), that give each part its share of the traffic; an empty part gets none."""
        parts = ((self.new, self.share), (~self.new, 1 - self.share))
        return np.asarray(sum(mask * share / max(mask.sum(), 1) for mask, share in parts), np.float64) * len(self.new)


@dataclass(frozen=True, kw_only=True)
class PromotionPolicy:
    """The demands on a challenger. See `promotion` and `evaluate` in params.yaml; docs/gates.md explains them.

    metric: the headline. floors: metric -> least value. min_gain: least lower bound of challenger minus champion.
    max_slice_loss: largest loss that a slice may have. The ratios are challenger / champion.
    """

    metric: str
    floors: Mapping[str, float]
    min_gain: float
    max_slice_loss: float
    max_size_ratio: float
    max_latency_ratio: float
    resamples: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class PromotionDecision:
    """The decision, its reasons, and the figures behind it in plain JSON types."""

    promote: bool
    reasons: tuple[str, ...]
    figures: dict[str, Any]

    def __str__(self) -> str:
        """Return the text that `loopline release promote` prints."""
        return "\n  ".join(["promoted" if self.promote else "refused", *self.reasons])


def decide(
    challenger: PromotionEvidence,
    champion: PromotionEvidence | None,
    policy: PromotionPolicy,
    present: Present | None = None,
) -> PromotionDecision:
    """Decide on the promotion. If there is no champion, the challenger must only hold the floors.

    present: the present traffic, if the challenger follows an alert.
    """
    if champion is None:
        broken, figures = _floors(challenger, policy)
        return _decision(list(broken.values()), ["the first champion: it holds every floor"], figures)
    if challenger.test_set != champion.test_set:
        return _decision(["the two were not measured on the same test set"], [], {})
    objections, context, figures = (
        _now(challenger, champion, policy, present) if present else _whole(challenger, champion, policy)
    )
    if missing := [label for label in champion.labels if label not in challenger.labels]:
        objections.append(f"the champion knows labels that the challenger does not: {', '.join(missing)}")
    lost, figures["parts"] = _parts(challenger, champion, policy)
    figures["too_small_to_judge"] = dict(challenger.small)
    spent, figures["budgets"] = _budgets(challenger, champion, policy)
    decision = _decision(objections + lost + spent, context, figures)
    if present and objections:  # a refusal states the shares of the traffic as well
        return replace(decision, reasons=(*decision.reasons, *context))
    return decision


def _decision(objections: list[str], praise: list[str], figures: dict[str, Any]) -> PromotionDecision:
    return PromotionDecision(promote=not objections, reasons=tuple(objections or praise), figures=figures)


Judged = tuple[list[str], list[str], dict[str, Any]]  # objections, other statements, figures


def _whole(challenger: PromotionEvidence, champion: PromotionEvidence, policy: PromotionPolicy) -> Judged:
    """Judge the floors, and the gain with all test samples weighted alike."""
    broken, figures = _floors(challenger, policy)
    objections = list(broken.values())
    gain = _gain(challenger.scorer, champion.scorer, challenger.n, policy)
    figures["gain"] = _plain(gain)
    if not gain.low >= policy.min_gain:
        objections.append(
            f"no proof of a gain in {policy.metric}: {_text(gain)} against the champion, "
            f"the lower bound must be at least {policy.min_gain:+.4f}"
        )
    return objections, [f"{policy.metric} {_text(gain)} against the champion"], figures


def _now(
    challenger: PromotionEvidence, champion: PromotionEvidence, policy: PromotionPolicy, present: Present
) -> Judged:
    """Judge the gain on the new part, the loss on the old one, and the floors that the champion holds in the present traffic."""
    count = int(present.new.sum())
    weighted = [replace(model, scorer=restrict(model.scorer, present.weights)) for model in (challenger, champion)]
    failed, figures = _floors(weighted[1], policy)
    waived = {metric for metric in policy.floors if metric in figures["metrics"] and failed.get(metric)}
    held = replace(policy, floors={metric: floor for metric, floor in policy.floors.items() if metric not in waived})
    broken, figures = _floors(weighted[0], held)
    objections = list(broken.values())
    context = [f"the champion does not hold the floor either: {failed[metric]}" for metric in sorted(waived)]
    figures["gain"] = _plain(_gain(weighted[0].scorer, weighted[1].scorer, challenger.n, policy))
    figures["present"] = {"requests": present.requests, "new": {"share": round(present.share, 4), "n": count}}
    figures["present"]["old"] = {"share": round(1 - present.share, 4), "n": len(present.new) - count}
    for name, mask in (("new", present.new), ("old", ~present.new)):
        if not mask.any():
            continue
        change = _gain(restrict(challenger.scorer, mask), restrict(champion.scorer, mask), challenger.n, policy)
        part = figures["present"][name]
        part["gain"] = _plain(change)
        context.append(
            f"{name} part, {part['share']:.0%} of the latest {present.requests:,} requests: "
            f"{policy.metric} {_text(change)} on {part['n']:,} test samples"
        )
        if name == "old" and not change.low >= -policy.max_slice_loss:
            objections.append(
                f"the old part may lose more than {policy.max_slice_loss}: {policy.metric} {_text(change)}"
            )
        if name == "new" and count >= LEAST_NEW:
            objections += _unproven(change, count, policy)
    if count < LEAST_NEW:
        more = ceil(present.batch * LEAST_NEW / max(count, 1)) - present.batch
        objections.append(
            f"the newest labelled batch has {count} samples in the test split, {LEAST_NEW} are needed: "
            f"label about {more:,} more"
        )
    return objections, context, figures


def _unproven(gain: Interval, n: int, policy: PromotionPolicy) -> list[str]:
    """Return why the gain on the n samples of the new part is not proven; empty if it is. A gain of exactly 0 is not proven."""
    if gain.low > 0 and gain.low >= policy.min_gain:
        return []
    reason = (
        f"no proof of a gain in {policy.metric} on the new part: {_text(gain)}, "
        f"the lower bound must be over 0 and at least {policy.min_gain:+.4f}"
    )
    if gain.value > max(policy.min_gain, 0) and not isnan(gain.low):
        needed = ceil(n * ((gain.value - gain.low) / (gain.value - max(policy.min_gain, 0))) ** 2)
        reason += f"; if it is real, about {needed:,} test samples would prove it, there are {n:,}"
    return [reason]


def _gain(challenger: Scorer, champion: Scorer, n: int, policy: PromotionPolicy) -> Interval:
    return bootstrap.paired(challenger, champion, n, metric=policy.metric, resamples=policy.resamples, seed=policy.seed)


def _floors(model: PromotionEvidence, policy: PromotionPolicy) -> tuple[dict[str, str], dict[str, Any]]:
    """Return metric -> why its floor is not held, and all figures. A metric that is not measured does not hold its floor."""
    measured = bootstrap.intervals(model.scorer, model.n, resamples=policy.resamples, seed=policy.seed)
    objections = {}
    for metric, floor in policy.floors.items():
        if metric not in measured:
            names = ", ".join(measured)
            objections[metric] = f"a floor is set for {metric!r}, which is not measured: there are {names}"
        elif not measured[metric].low >= floor:
            value, low = measured[metric].value, measured[metric].low
            objections[metric] = f"{metric} {value:.4f} may be as low as {low:.4f}, the floor is {floor}"
    return objections, {"metrics": {metric: _plain(interval) for metric, interval in measured.items()}}


def _parts(
    challenger: PromotionEvidence, champion: PromotionEvidence, policy: PromotionPolicy
) -> tuple[list[str], dict[str, Any]]:
    """Return the slices and classes that lose more than is allowed and more than by chance, and the figures of all."""
    objections, figures = [], {}
    for name, (scorer, metric) in champion.parts.items():
        if name in challenger.small:
            continue
        if name not in challenger.parts:
            objections.append(f"{name} was not measured for the challenger")
            continue
        new, resamples = challenger.parts[name][0], min(policy.resamples, PART_RESAMPLES)
        change = bootstrap.paired(new, scorer, challenger.n, metric=metric, resamples=resamples, seed=policy.seed)
        figures[name] = {"metric": metric, **_plain(change)}
        if change.value < -policy.max_slice_loss and not change.high >= 0:
            objections.append(f"{name} loses: {metric} {_text(change)}, {policy.max_slice_loss} is allowed")
    return objections, figures


def _budgets(
    challenger: PromotionEvidence, champion: PromotionEvidence, policy: PromotionPolicy
) -> tuple[list[str], dict[str, Any]]:
    size, latency = challenger.bytes / champion.bytes, challenger.seconds / champion.seconds
    objections = []
    if not size <= policy.max_size_ratio:
        objections.append(f"{size:.2f} times the champion's size, {policy.max_size_ratio} is allowed")
    if not latency <= policy.max_latency_ratio:
        objections.append(f"{latency:.2f} times the champion's time, {policy.max_latency_ratio} is allowed")
    return objections, {"size_ratio": round(size, 3), "latency_ratio": round(latency, 3)}


def _text(interval: Interval) -> str:
    return f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def _plain(interval: Interval) -> dict[str, float | None]:
    return {key: None if isnan(value) else value for key, value in interval.rounded().items()}
