"""Is the challenger as good as the champion? A pure function from what was seen to a verdict and its reasons. Numpy only.

`shadow` judges a replay, `canary` a step of live traffic. A hard stop ends it at once; a clear difference for the worse rolls back;
too little data, or a difference that is neither clear nor harmless, holds; and only what has all its evidence passes. How long it may
hold is the controller's business, and what comes after that is a rollback.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import erfc, exp, isfinite, log, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

GRID = 256  # alternatives that the mixture of the sequential test is made of
NOISE = 3.0  # standard errors


@dataclass(frozen=True, kw_only=True)
class RolloutPolicy:
    """What is demanded. docs/rollout.md says why these; docs/rollout-benchmark.md what they find.

    requests: of each lane, in each step, before it may pass. alpha: chance that a sequential test ever rolls back a challenger that
    is no worse. slice, points: a latency figure is the 95th percentile of `slice` requests that followed each other; so many of them
    are needed in a lane. slower, error_gain, accuracy_loss: what is harmless. chance: p under which a rise of latency over `slower`
    is clear. shift: total variation between the classes that challenger and baseline predict, beyond what shadow showed and beyond
    chance. labels: labelled answers of the challenger that are demanded; 0: they count where they are. broken: share of errors, from
    `broken_from` of them on, that is no matter of statistics. shadow_inputs, shadow_slower: least inputs of a shadow, and the
    largest ratio of latencies.
    """

    requests: int = 2000
    alpha: float = 0.001
    slice: int = 40
    points: int = 50
    slower: float = 0.10
    chance: float = 0.01
    error_gain: float = 0.005
    accuracy_loss: float = 0.01
    shift: float = 0.10
    labels: int = 0
    broken: float = 0.5
    broken_from: int = 5
    shadow_inputs: int = 100
    shadow_slower: float = 1.5


@dataclass(frozen=True, kw_only=True)
class LaneCounts:
    """What was seen of one. requests, errors: since the canary began; step: requests of this step alone.

    seconds: (requests of the step,) latencies in order of time. classes: predicted class -> samples. labelled, right: answers
    whose label came, and the sum of their quality, 0 to 1.
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
    """Both lanes. sick: why the challenger's servers are not healthy, empty if they are. invalid: answers that are no number.

    expected: total variation that shadow showed between the two. share: of the requests of both lanes, the challenger's; above 0 and
    below 1.
    """

    challenger: LaneCounts
    baseline: LaneCounts
    sick: str = ""
    invalid: int = 0
    expected: float = 0.0
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """A replay of the same inputs on both. failed: inputs that the champion answered and the challenger did not. ratios: challenger's
    seconds over champion's. expected: total variation between the predicted classes."""

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


def shadow(seen: Shadow, policy: RolloutPolicy) -> Verdict:
    """Of a replay. That the answers differ is no reason: a model that learned more answers otherwise."""
    ratio = float(np.median(seen.ratios)) if len(seen.ratios) else 1.0
    stops = []
    if seen.sick:
        stops.append(seen.sick)
    if seen.invalid:
        stops.append(f"{seen.invalid} answers hold what is no number")
    if seen.failed:
        stops.append(f"{seen.failed} of {seen.inputs} inputs that the champion answers are not answered")
    if not all(map(isfinite, (ratio, seen.expected))):
        stops.append("a figure of the evidence is no number")
    if ratio > policy.shadow_slower:
        stops.append(f"{ratio:.2f} times the champion's latency, {policy.shadow_slower} is allowed")
    if stops:
        return Verdict("roll back", tuple(stops))
    said = f"{seen.inputs} inputs, {seen.agreed} answered alike, {ratio:.2f} times the champion's latency"
    if seen.inputs < policy.shadow_inputs:
        return Verdict("hold", (f"{said}; {policy.shadow_inputs} inputs are wanted",))
    return Verdict("pass", (said,))


def canary(seen: RolloutEvidence, policy: RolloutPolicy) -> Verdict:
    """Of a step of live traffic."""
    if stops := _hard_stops(seen, policy):
        return Verdict("roll back", tuple(stops))
    ours, theirs = seen.challenger, seen.baseline
    found = [_errors(seen, policy), _latency(ours, theirs, policy), _accuracy(ours, theirs, policy)]
    found.append(_classes(seen, policy))
    for action in ("roll back", "hold"):
        if reasons := tuple(said for kind, said in found if kind == action):
            return Verdict(action, reasons)
    least = min(ours.step, theirs.step)
    if least < policy.requests:
        return Verdict("hold", (f"{least} of {policy.requests} requests in a lane",))
    return Verdict("pass", tuple(said for _, said in found if said))


def _hard_stops(seen: RolloutEvidence, policy: RolloutPolicy) -> list[str]:
    ours, theirs = seen.challenger, seen.baseline
    stops = [seen.sick] if seen.sick else []
    if seen.invalid:
        stops.append(f"{seen.invalid} answers hold what is no number")
    figures = [seen.expected]
    for lane in (ours, theirs):
        figures += [lane.requests, lane.errors, lane.step, lane.labelled, lane.right, *lane.classes.values()]
    if not (all(map(isfinite, figures)) and np.isfinite(ours.seconds).all() and np.isfinite(theirs.seconds).all()):
        stops.append("a figure of the evidence is no number")
    elif ours.errors >= policy.broken_from and _rate(ours) >= policy.broken > _rate(theirs):
        stops.append(f"{ours.errors} of {ours.requests} requests failed")
    return stops


def _rate(lane: LaneCounts) -> float:
    return lane.errors / lane.requests if lane.requests else 0.0


def _errors(seen: RolloutEvidence, policy: RolloutPolicy) -> tuple[str, str]:
    """Errors since the canary began. Of errors that are nobody's fault the challenger has its share of the requests, however often
    they come (half, where both lanes get the same part of the stream); that is tested, at all times at once."""
    ours, theirs = seen.challenger, seen.baseline
    proof = evalue(ours.errors, theirs.errors, seen.share)
    gain = _rate(ours) - _rate(theirs)
    said = f"errors {_rate(ours):.2%} against {_rate(theirs):.2%}"
    if proof >= 1 / policy.alpha:
        return "roll back", f"{said}: more than chance (e-value {proof:.3g})"
    return ("hold", f"{said}: not clear") if gain > policy.error_gain else ("", said)


def evalue(ours: int, theirs: int, share: float = 0.5) -> float:
    """Evidence that errors fall to us more often than our share: under that or less it passes 1/alpha ever, in however many
    looks, with probability alpha at most.

    A mixture of likelihood ratios over alternatives between the share and 1: Lindon and Malek, Anytime-valid inference for multinomial
    count data, NeurIPS 2022, one-sided. Rates may change with time as long as they do for both.
    """
    shares = share + (1 - share) * (np.arange(GRID) + 0.5) / GRID
    logs = ours * np.log(shares / share) + theirs * np.log((1 - shares) / (1 - share))
    top = float(logs.max())
    return exp(min(top + log(float(np.exp(logs - top).mean())), 700.0))


def _latency(ours: LaneCounts, theirs: LaneCounts, policy: RolloutPolicy) -> tuple[str, str]:
    """The 95th percentiles of slices, by their ranks: no shape of a distribution is assumed, and a few bad slices decide nothing."""
    a, b = (np.log(percentiles(lane.seconds, policy.slice)) for lane in (ours, theirs))
    if min(len(a), len(b)) < max(1, policy.points):
        return "hold", f"{min(len(a), len(b))} of {policy.points} points of latency"
    ratio = exp(hodges_lehmann(a, b))
    chance = mann_whitney(a - log(1 + policy.slower), b)  # not "is it slower", but "is it slower than allowed"
    said = f"95th percentile of latency {ratio - 1:+.1%}"
    if ratio <= 1 + policy.slower:
        return "", said
    if chance < policy.chance:
        return "roll back", f"{said}, {policy.slower:.0%} is allowed (p = {chance:.1g})"
    return "hold", f"{said}: not clear (p = {chance:.2g})"


def percentiles(seconds: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(slices,) the 95th percentile of each whole slice of `size` values; at least a microsecond."""
    whole = seconds[: len(seconds) // size * size].reshape(-1, size)
    return np.maximum(np.quantile(whole, 0.95, axis=1), 1e-6) if len(whole) else np.zeros(0)


def mann_whitney(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """One-sided p: are values of `a` larger? By the normal approximation, with ties (Mann and Whitney 1947)."""
    n, m = len(a), len(b)
    _, places, counts = np.unique(np.concatenate([a, b]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    u = ranks[:n].sum() - n * (n + 1) / 2
    ties = float((counts**3 - counts).sum()) / ((n + m) * (n + m - 1))
    variance = n * m / 12 * (n + m + 1 - ties)
    return 0.5 * erfc((u - n * m / 2 - 0.5) / sqrt(2 * variance)) if variance else 1.0


def hodges_lehmann(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """How far `a` lies above `b`: the median of all differences (Hodges and Lehmann 1963)."""
    return float(np.median(a[:, None] - b[None, :]))


def _accuracy(ours: LaneCounts, theirs: LaneCounts, policy: RolloutPolicy) -> tuple[str, str]:
    """Labelled answers. None of them is no evidence, and no reason to wait unless the policy demands them."""
    if ours.labelled < policy.labels:
        return "hold", f"{ours.labelled:.0f} of {policy.labels} labelled answers"
    if not (ours.labelled and theirs.labelled):
        return "", ""
    a, b = ours.right / ours.labelled, theirs.right / theirs.labelled
    said = f"labelled quality {a:.3f} against {b:.3f}"
    if b - a > lost_by_chance(ours, theirs, policy.alpha):
        return "roll back", f"{said}: less than chance explains"
    # With few labels a large loss is chance as well; the demand for labels is what makes them enough.
    return ("hold", f"{said}: not clear") if policy.labels and b - a > policy.accuracy_loss else ("", said)


def lost_by_chance(ours: LaneCounts, theirs: LaneCounts, alpha: float) -> float:
    """The loss of quality that chance explains at all times at once, with probability 1 - alpha.

    The one-sided asymptotic confidence sequence of Waudby-Smith et al., Time-uniform central limit theory and asymptotic confidence
    sequences, Annals of Statistics 2024, tightest at some thousand labels. A quality between 0 and 1 varies at most as p(1 - p); a
    pseudo-count keeps that from 0.
    """
    n = 1 / (1 / ours.labelled + 1 / theirs.labelled)
    variances = []
    for lane in (ours, theirs):
        p = min((lane.right + 1) / (lane.labelled + 2), 1.0)  # the counters are read one after the other
        variances.append(p * (1 - p) / lane.labelled)
    rho = 1 / 2000
    scale = n * rho + 1
    return sqrt(n * sum(variances)) * sqrt(2 * scale / (n**2 * rho) * log(1 + sqrt(scale) / (2 * alpha)))


def _classes(seen: RolloutEvidence, policy: RolloutPolicy) -> tuple[str, str]:
    """Both lanes see the same traffic. What a retrained model legitimately answers otherwise, shadow has shown on the same inputs."""
    a, b = seen.challenger.classes, seen.baseline.classes
    for name, lane in (("challenger", seen.challenger), ("baseline", seen.baseline)):
        if lane.step and not sum(lane.classes.values()):
            return "hold", f"the counters of the {name}'s servers cannot be read, or count no predicted class"
    if not (sum(a.values()) and sum(b.values())):  # nor are there requests
        return "", ""
    moved, chance = total_variation(a, b)
    limit = seen.expected + policy.shift
    said = f"predicted classes {moved:.3f} apart"
    if moved > limit + chance:
        return "roll back", f"{said}, {limit:.3f} is allowed"
    return "", said


def total_variation(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[float, float]:
    """Between two counts of classes, 0 to 1; and what chance alone makes of it: its mean without a difference, at most, and NOISE
    standard errors of the largest term."""
    names = sorted({*a, *b})
    x, y = (np.array([side.get(name, 0.0) for name in names]) for side in (a, b))
    n, m = x.sum(), y.sum()
    common = (x + y) / (n + m)
    errors = np.sqrt(common * (1 - common) * (1 / n + 1 / m))
    return float(np.abs(x / n - y / m).sum() / 2), float(errors.sum() / 2 + NOISE * errors.max(initial=0.0))
