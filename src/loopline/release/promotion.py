"""May the challenger replace the champion? A pure function from what both did on one test set to a reasoned decision.

Nothing is decided on a point estimate: a gain counts by the lower bound of its 95 % paired bootstrap interval, a floor
by the lower bound of the challenger's own, and a slice is lost where the whole interval of its change lies below zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

from loopline.tasks import bootstrap
from loopline.tasks.bootstrap import Interval, Scorer

PART_RESAMPLES = 200  # enough for a slice's interval, and there are many slices


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one model did on the test set.

    version: of its bundle. test_set: hash of the samples and their labels. n: how many. labels: what it can answer.
    scorer: its metrics. parts: slices and classes by name, each a scorer and the metric that counts there.
    bytes: of the ONNX file. seconds: median of one answer, timed side by side with the other model.
    """

    version: str
    test_set: str
    n: int
    labels: tuple[str, ...]
    scorer: Scorer
    parts: Mapping[str, tuple[Scorer, str]]
    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a challenger must show. See `promotion` and `evaluate` in params.yaml; docs/gates.md explains.

    metric: the headline. floors: metric -> least value. min_gain: the least lower bound of challenger minus champion.
    max_slice_loss: what a slice may lose. The ratios are challenger / champion.
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
class Decision:
    """Yes or no, why, and the figures behind it (plain JSON types)."""

    promote: bool
    reasons: tuple[str, ...]
    figures: dict[str, Any]

    def __str__(self) -> str:
        """As `loopline release promote` prints it."""
        return "\n  ".join(["promoted" if self.promote else "refused", *self.reasons])


def decide(challenger: Evidence, champion: Evidence | None, policy: Policy) -> Decision:
    """Compare the two. Without a champion the challenger needs to hold the floors only."""
    objections, figures = _floors(challenger, policy)
    if champion is None:
        return _decision(objections, ["the first champion: it holds every floor"], figures)
    if challenger.test_set != champion.test_set:
        return _decision(["the two were not measured on the same test set"], [], figures)
    if missing := [label for label in champion.labels if label not in challenger.labels]:
        objections.append(f"the champion knows labels that the challenger does not: {', '.join(missing)}")
    gain = bootstrap.paired(
        challenger.scorer,
        champion.scorer,
        challenger.n,
        metric=policy.metric,
        resamples=policy.resamples,
        seed=policy.seed,
    )
    figures["gain"] = _plain(gain)
    if not gain.low >= policy.min_gain:
        objections.append(
            f"no proof of a gain in {policy.metric}: {_text(gain)} against the champion, "
            f"the lower bound must be at least {policy.min_gain:+.4f}"
        )
    lost, figures["parts"] = _parts(challenger, champion, policy)
    spent, figures["budgets"] = _budgets(challenger, champion, policy)
    return _decision(objections + lost + spent, [f"{policy.metric} {_text(gain)} against the champion"], figures)


def _decision(objections: list[str], praise: list[str], figures: dict[str, Any]) -> Decision:
    return Decision(promote=not objections, reasons=tuple(objections or praise), figures=figures)


def _floors(challenger: Evidence, policy: Policy) -> tuple[list[str], dict[str, Any]]:
    """The first thing to hold, champion or not. A metric that is not measured holds no floor."""
    found = bootstrap.intervals(challenger.scorer, challenger.n, resamples=policy.resamples, seed=policy.seed)
    objections = []
    for metric, floor in policy.floors.items():
        if metric not in found:
            objections.append(f"a floor is set for {metric!r}, which is not measured: there are {', '.join(found)}")
        elif not found[metric].low >= floor:
            objections.append(
                f"{metric} {found[metric].value:.4f} may be as low as {found[metric].low:.4f}, the floor is {floor}"
            )
    return objections, {"metrics": {metric: _plain(interval) for metric, interval in found.items()}}


def _parts(challenger: Evidence, champion: Evidence, policy: Policy) -> tuple[list[str], dict[str, Any]]:
    """No slice and no class may lose more than it is allowed to, where the loss is more than chance."""
    objections, figures = [], {}
    for name, (scorer, metric) in champion.parts.items():
        if name not in challenger.parts:
            objections.append(f"{name} was not measured for the challenger")
            continue
        ours, resamples = challenger.parts[name][0], min(policy.resamples, PART_RESAMPLES)
        change = bootstrap.paired(ours, scorer, challenger.n, metric=metric, resamples=resamples, seed=policy.seed)
        figures[name] = {"metric": metric, **_plain(change)}
        if change.value < -policy.max_slice_loss and not change.high >= 0:
            objections.append(f"{name} loses: {metric} {_text(change)}, {policy.max_slice_loss} is allowed")
    return objections, figures


def _budgets(challenger: Evidence, champion: Evidence, policy: Policy) -> tuple[list[str], dict[str, Any]]:
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
