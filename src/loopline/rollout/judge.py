"""Decide whether the challenger is as good as the champion: pure functions from evidence to a verdict. Numpy only.

`shadow` judges a replay, `canary` judges a step of live traffic. A hard stop rolls back at once, and so does a clear difference
for the worse. Too little data holds, and so does an unclear difference of errors, of latency, or of labels that are demanded. A
step passes only if all its evidence is in. The controller limits how long a step may hold; after that time it rolls back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import erfc, exp, isfinite, log, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from loopline.lib.options import option

GRID = 256  # alternatives in the mixture of the sequential test
NOISE = 3.0  # standard errors


@dataclass(frozen=True, kw_only=True)
class RolloutPolicy:
    """What the judge demands. docs/rollout.md gives the reasons for these values, docs/rollout-benchmark.md how well they work.

    requests: least number of requests of a lane in a step. alpha: chance that a sequential test ever rolls back a challenger that
    is no worse. slice: number of consecutive requests whose 95th percentile is one point of latency. points: least number of
    points of latency in a lane. slower: share by which latency may rise. chance: p-value under which a rise of latency over
    `slower` is clear. error_gain: allowed rise of the error rate. accuracy_loss: allowed loss of labelled quality. shift: total
    variation between the lanes' predicted classes, allowed beyond the shadow's and beyond chance. labels: least number of the
    challenger's labelled answers; 0: labels count if there are any. broken: share of errors that stops a rollout without a test.
    broken_from: least number of errors for that stop. shadow_inputs: least number of inputs of a shadow. shadow_slower: largest
    allowed ratio of latencies in a shadow, unless `slower` allows more.
    """

    requests: int = option(2000, "number of requests in each lane that each step needs")
    alpha: float = 0.001
    slice: int = option(40, "number of requests behind a latency figure, their 95th percentile")
    points: int = option(50, "number of latency figures that each lane needs")
    slower: float = option(0.10, "share by which latency may rise, 0.1 is 10 percent")
    chance: float = 0.01
    error_gain: float = 0.005
    accuracy_loss: float = 0.01
    shift: float = option(0.10, "distance of predicted classes, 0 to 1, allowed beyond the shadow's")
    labels: int = option(0, "number of labelled answers that the promotion needs")
    broken: float = 0.5
    broken_from: int = 5
    shadow_inputs: int = 100
    shadow_slower: float = 1.5


@dataclass(frozen=True, kw_only=True)
class LaneCounts:
    """What was counted in one lane.

    requests: number since the canary began. errors: number of those requests that were answered with 5xx. step: number of requests
    in this step. seconds: latency of each request of this step, in order of time: (requests,). classes: predicted class -> number
    of samples since the servers started. labelled: number of answers for which a label came. right: sum of their quality, each
    from 0 to 1.
    """

    requests: int = 0
    errors: int = 0
    step: int = 0
    seconds: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    classes: Mapping[str, float] = field(default_factory=dict)
    labelled: float = 0.0
    right: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RolloutEvidence:
    """The evidence of a canary.

    sick: why the challenger's servers are not healthy; empty if they are. invalid: number of the challenger's answers that contain
    NaN. expected: total variation between the predicted classes in the shadow. share: the challenger's share of the requests of
    both lanes, above 0 and below 1.
    """

    challenger: LaneCounts
    baseline: LaneCounts
    sick: str = ""
    invalid: int = 0
    expected: float = 0.0
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """A replay of the same inputs on both servers.

    inputs: number of inputs that the champion answered. failed: number of inputs that only the champion answered. invalid: number
    of the challenger's answers that contain NaN. agreed: number of inputs whose predicted classes are equal. ratios: the
    challenger's seconds over the champion's: (answered inputs,). expected: total variation between the predicted classes. sick:
    why the challenger's servers are not healthy; empty if they are.
    """

    inputs: int
    failed: int
    invalid: int
    agreed: int
    ratios: NDArray[np.float64]
    expected: float = 0.0
    sick: str = ""


@dataclass(frozen=True)
class Verdict:
    """What to do, and why."""

    action: Literal["pass", "hold", "roll back"]
    reasons: tuple[str, ...]


def shadow(evidence: Shadow, policy: RolloutPolicy) -> Verdict:
    """The verdict on a replay. Different answers are no reason to stop, because a model that learned more answers differently."""
    ratio = float(np.median(evidence.ratios)) if len(evidence.ratios) else 1.0
    stops = []
    if evidence.sick:
        stops.append(evidence.sick)
    if evidence.invalid:
        stops.append(f"{evidence.invalid} answers contain a value that is not a number")
    if evidence.failed:
        stops.append(f"{evidence.failed} of {evidence.inputs} inputs that the champion answered were not answered")
    if not all(map(isfinite, (ratio, evidence.expected))):
        stops.append("a figure of the evidence is not a number")
    allowed = max(policy.shadow_slower, 1 + policy.slower)
    if ratio > allowed:
        stops.append(f"{ratio:.2f} times the champion's latency, {allowed:g} is allowed")
    if stops:
        return Verdict("roll back", tuple(stops))
    summary = f"{evidence.inputs} inputs, {evidence.agreed} answered alike, {ratio:.2f} times the champion's latency"
    if evidence.inputs < policy.shadow_inputs:
        return Verdict("hold", (f"{summary}; {policy.shadow_inputs} inputs are needed",))
    return Verdict("pass", (summary,))


def canary(evidence: RolloutEvidence, policy: RolloutPolicy) -> Verdict:
    """The verdict on a step of live traffic."""
    if stops := _hard_stops(evidence, policy):
        return Verdict("roll back", tuple(stops))
    challenger, baseline = evidence.challenger, evidence.baseline
    results = [
        _errors(evidence, policy),
        _latency(challenger, baseline, policy),
        _accuracy(challenger, baseline, policy),
        _classes(evidence, policy),
    ]
    for action in ("roll back", "hold"):
        if reasons := tuple(reason for result, reason in results if result == action):
            return Verdict(action, reasons)
    least = min(challenger.step, baseline.step)
    if least < policy.requests:
        return Verdict("hold", (f"{least} of {policy.requests} requests in a lane",))
    return Verdict("pass", tuple(reason for _, reason in results if reason))


def _hard_stops(evidence: RolloutEvidence, policy: RolloutPolicy) -> list[str]:
    challenger, baseline = evidence.challenger, evidence.baseline
    stops = [evidence.sick] if evidence.sick else []
    if evidence.invalid:
        stops.append(f"{evidence.invalid} answers contain a value that is not a number")
    figures = [evidence.expected]
    for lane in (challenger, baseline):
        figures += [lane.requests, lane.errors, lane.step, lane.labelled, lane.right, *lane.classes.values()]
    finite = all(np.isfinite(lane.seconds).all() for lane in (challenger, baseline))
    if not (finite and all(map(isfinite, figures))):
        stops.append("a figure of the evidence is not a number")
    elif challenger.errors >= policy.broken_from and _rate(challenger) >= policy.broken > _rate(baseline):
        stops.append(f"{challenger.errors} of {challenger.requests} requests failed")
    return stops


def _rate(lane: LaneCounts) -> float:
    return lane.errors / lane.requests if lane.requests else 0.0


def _errors(evidence: RolloutEvidence, policy: RolloutPolicy) -> tuple[str, str]:
    """The action, empty if errors are harmless, and its reason. Counts errors since the canary began.

    If neither lane causes the errors, the challenger's share of them equals its share of the requests, at whatever rate they
    come. The sequential test of that share is valid at all times at once.
    """
    challenger, baseline = evidence.challenger, evidence.baseline
    proof = evalue(challenger.errors, baseline.errors, evidence.share)
    gain = _rate(challenger) - _rate(baseline)
    summary = f"errors {_rate(challenger):.2%} against {_rate(baseline):.2%}"
    if proof >= 1 / policy.alpha:
        return "roll back", f"{summary}: more than chance (e-value {proof:.3g})"
    return ("hold", f"{summary}: not clear") if gain > policy.error_gain else ("", summary)


def evalue(challenger: int, baseline: int, share: float = 0.5) -> float:
    """Evidence that more errors fall to the challenger than its share of the requests, from the errors of both lanes.

    If its true share of the errors is `share` or less, the evidence ever passes 1/alpha with probability alpha at most, in
    however many looks.

    A mixture of likelihood ratios over alternatives between the share and 1: Lindon and Malek, Anytime-valid inference for
    multinomial count data, NeurIPS 2022, one-sided. Error rates may change with time, as long as they change for both lanes.
    """
    shares = share + (1 - share) * (np.arange(GRID) + 0.5) / GRID
    logs = challenger * np.log(shares / share) + baseline * np.log((1 - shares) / (1 - share))
    top = float(logs.max())
    return exp(min(top + log(float(np.exp(logs - top).mean())), 700.0))


def _latency(challenger: LaneCounts, baseline: LaneCounts, policy: RolloutPolicy) -> tuple[str, str]:
    """The action, empty if the latency is harmless, and its reason. Compares the 95th percentiles of slices by their ranks.

    Ranks assume no shape of a distribution, and a few bad slices decide nothing.
    """
    a, b = (np.log(percentiles(lane.seconds, policy.slice)) for lane in (challenger, baseline))
    points = min(len(a), len(b))
    if points < max(1, policy.points):
        return "hold", f"{points} of {policy.points} points of latency"
    ratio = exp(hodges_lehmann(a, b))
    # The test asks whether the challenger is slower than allowed, not whether it is slower.
    chance = mann_whitney(a - log(1 + policy.slower), b)
    summary = f"95th percentile of latency {ratio - 1:+.1%}"
    if ratio <= 1 + policy.slower:
        return "", summary
    if chance < policy.chance:
        return "roll back", f"{summary}, {policy.slower:.0%} is allowed (p = {chance:.1g})"
    return "hold", f"{summary}: not clear (p = {chance:.2g})"


def percentiles(seconds: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(slices,) the 95th percentile, in seconds, of each complete slice of `size` values; at least a microsecond."""
    slices = seconds[: len(seconds) // size * size].reshape(-1, size)
    return np.maximum(np.quantile(slices, 0.95, axis=1), 1e-6) if len(slices) else np.zeros(0)


def mann_whitney(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """One-sided p-value of "values of `a` are larger", by the normal approximation with ties (Mann and Whitney 1947)."""
    n, m = len(a), len(b)
    _, places, counts = np.unique(np.concatenate([a, b]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    u = ranks[:n].sum() - n * (n + 1) / 2
    ties = float((counts**3 - counts).sum()) / ((n + m) * (n + m - 1))
    variance = n * m / 12 * (n + m + 1 - ties)
    return 0.5 * erfc((u - n * m / 2 - 0.5) / sqrt(2 * variance)) if variance else 1.0


def hodges_lehmann(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Shift of `a` above `b`: the median of all pairwise differences (Hodges and Lehmann 1963)."""
    return float(np.median(a[:, None] - b[None, :]))


def _accuracy(challenger: LaneCounts, baseline: LaneCounts, policy: RolloutPolicy) -> tuple[str, str]:
    """The action, empty if the quality of labelled answers is harmless, and its reason.

    A lane without labels is no evidence, and is waited for only if the policy demands labels.
    """
    if challenger.labelled < policy.labels:
        return "hold", f"{challenger.labelled:.0f} of {policy.labels} labelled answers"
    if not (challenger.labelled and baseline.labelled):
        return "", ""
    a, b = challenger.right / challenger.labelled, baseline.right / baseline.labelled
    summary = f"labelled quality {a:.3f} against {b:.3f}"
    if b - a > lost_by_chance(challenger, baseline, policy.alpha):
        return "roll back", f"{summary}: less than chance explains"
    # With few labels even a large loss can be chance, so an unclear loss holds only if the policy demands labels.
    return ("hold", f"{summary}: not clear") if policy.labels and b - a > policy.accuracy_loss else ("", summary)


def lost_by_chance(challenger: LaneCounts, baseline: LaneCounts, alpha: float) -> float:
    """The largest loss of quality that chance explains, at all times at once, with probability 1 - alpha.

    This is the one-sided asymptotic confidence sequence of Waudby-Smith et al., Time-uniform central limit theory and asymptotic
    confidence sequences, Annals of Statistics 2024, tightest at a few thousand labels. The variance of a quality between 0 and 1
    is at most p(1 - p); a pseudo-count keeps it above 0.
    """
    n = 1 / (1 / challenger.labelled + 1 / baseline.labelled)
    variances = []
    for lane in (challenger, baseline):
        # The counters are read one after the other, so `right` may exceed `labelled`.
        p = min((lane.right + 1) / (lane.labelled + 2), 1.0)
        variances.append(p * (1 - p) / lane.labelled)
    rho = 1 / 2000
    scale = n * rho + 1
    return sqrt(n * sum(variances)) * sqrt(2 * scale / (n**2 * rho) * log(1 + sqrt(scale) / (2 * alpha)))


def _classes(evidence: RolloutEvidence, policy: RolloutPolicy) -> tuple[str, str]:
    """The action, empty if the difference of predicted classes is harmless, and its reason.

    Both lanes get the same traffic. The shadow has measured, on the same inputs, how much a retrained model rightly answers
    differently.
    """
    a, b = evidence.challenger.classes, evidence.baseline.classes
    for name, lane in (("challenger", evidence.challenger), ("baseline", evidence.baseline)):
        if lane.step and not sum(lane.classes.values()):
            return "hold", f"the counters of the {name}'s servers cannot be read, or count no predicted class"
    if not (sum(a.values()) and sum(b.values())):  # the lane has no requests either
        return "", ""
    distance, chance = total_variation(a, b)
    limit = evidence.expected + policy.shift
    summary = f"predicted classes {distance:.3f} apart"
    if distance > limit + chance:
        return "roll back", f"{summary}, {limit:.3f} is allowed"
    return "", summary


def total_variation(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[float, float]:
    """Total variation between two counts of classes, from 0 to 1, and the part of it that chance alone explains.

    That part is an upper bound of the mean if both counts have one distribution, plus NOISE standard errors of the largest term.
    """
    names = sorted({*a, *b})
    x, y = (np.array([counts.get(name, 0.0) for name in names]) for counts in (a, b))
    n, m = x.sum(), y.sum()
    common = (x + y) / (n + m)
    errors = np.sqrt(common * (1 - common) * (1 / n + 1 / m))
    return float(np.abs(x / n - y / m).sum() / 2), float(errors.sum() / 2 + NOISE * errors.max(initial=0.0))
