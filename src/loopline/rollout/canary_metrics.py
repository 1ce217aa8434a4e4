"""A canary judged by what Prometheus counts of its two lanes: in containers and in a cluster, where no log of ours says each answer.

The judge is the one of `rollout`. Three things differ: the baseline is the champion itself, so it has more requests than the
challenger; a point of latency is the 95th percentile of an interval; and no shadow said how far the classes may be apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite

import numpy as np

from loopline.errors import LooplineError
from loopline.fleet.gateway import CHALLENGER, CHAMPION
from loopline.observability.prometheus_api import Series
from loopline.rollout import judge
from loopline.rollout.evidence import SIGNALS, SURE
from loopline.rollout.state import RolloutPlan
from loopline.tasks.signals import CLASS

LANES = f'lane=~"{CHAMPION}|{CHALLENGER}"'
ROUTES = 'route=~"infer|predict"'
Ask = Callable[[str], list[Series]]
Counts = dict[str, dict[tuple[str, ...], float]]


@dataclass(frozen=True, kw_only=True)
class Soak:
    """ask: Prometheus, about now. sick: why the challenger's servers are not healthy, empty if they are; raises LooplineError where
    the canary is over. scrape: seconds between two looks that Prometheus takes; an interval is two of them."""

    ask: Ask
    sick: Callable[[], str]
    plan: RolloutPlan
    scrape: float = 15.0

    def verdict(self, models: Sequence[str] = ()) -> judge.Verdict:
        """Look until the judge has a verdict on all of these models (default: all that the challenger serves), or time runs out: then
        it holds still, and that never passes. Raises LooplineError where the canary was ended meanwhile."""
        policy = replace(self.plan.policy, slice=1)  # a point is an interval's percentile already
        began, before = time.monotonic(), None
        while True:
            sick = self.sick()
            try:
                seconds = time.monotonic() - began
                if before is None:
                    before = self._counts("{}")
                    began, seconds = time.monotonic(), 0.0
                found = self._judged(models, before, ceil(seconds) or 1, sick, policy)
            except LooplineError as error:  # Prometheus may be away for a while: without it there is no evidence
                action = judge.Verdict("roll back", (sick,)) if sick else judge.Verdict("hold", (str(error),))
                found = {"": action}
            verdict = _worst(found)
            if verdict.action != "hold":
                return verdict
            if time.monotonic() - began > self.plan.hold:
                return judge.Verdict("hold", (f"no verdict within {self.plan.hold:g} s", *verdict.reasons))
            time.sleep(max(self.plan.every, self.scrape / 2))

    def _judged(
        self, models: Sequence[str], before: Counts, seconds: int, sick: str, policy: judge.RolloutPolicy
    ) -> dict[str, judge.Verdict]:
        """Model -> verdict."""
        now = self._counts(f"max_over_time({{}}[{seconds}s])")
        grown = {
            name: {key: max(n - before[name].get(key, 0.0), 0.0) for key, n in rows.items()}
            for name, rows in now.items()
        }
        versions = {
            (row.labels["lane"], row.labels["model"]): row.labels["version"]
            for row in self.ask(f"loopline_model_info{{{LANES}}}")
        }
        on_trial = [model for lane, model in sorted(versions) if lane == CHALLENGER]
        judged = {}
        for model in models or on_trial:
            both = [versions.get((lane, model), "") for lane in (CHALLENGER, CHAMPION)]
            if not all(both):
                reasons = (sick or f"Prometheus has not seen both lanes of {model} yet",)
                judged[model] = judge.Verdict("roll back" if sick else "hold", reasons)
                continue
            points = self._points(model, seconds)
            ours, theirs = (
                _lane(grown, lane, model, version if both[0] != both[1] else "", points[lane])
                for lane, version in zip((CHALLENGER, CHAMPION), both, strict=True)
            )
            bad = sum(n for key, n in grown["invalid"].items() if key[:2] == (CHALLENGER, model))
            seen = judge.RolloutEvidence(challenger=ours, baseline=theirs, sick=sick, invalid=int(bad))
            judged[model] = judge.canary(replace(seen, share=_share(ours, theirs)), policy)
        return judged or {"": judge.Verdict("hold", ("Prometheus has not seen the challenger's servers yet",))}

    def _counts(self, of: str) -> Counts:
        """What was counted, by what it is counted by. of: `{}` is the counter.

        Over a range it is the highest of each series, not `increase`: that leaves out what a series begins with, so a lane's first
        errors; and the servers that an autoscaler took away meanwhile are in it.
        """
        sure = "|".join(SURE)
        counted = {
            "requests": ("lane, model", f"loopline_requests_total{{{LANES},{ROUTES}}}"),
            "errors": ("lane, model", f'loopline_requests_total{{{LANES},{ROUTES},code=~"5.."}}'),
            "classes": ("lane, model, bin", f'{SIGNALS}{{{LANES},signal="{CLASS}"}}'),
            "invalid": ("lane, model", f'{SIGNALS}{{{LANES},signal=~"{sure}",bin="nan"}}'),
            "labelled": ("model, version", "loopline_labelled_rows_total"),
            "right": ("model, version", "loopline_labelled_quality_total"),
        }
        return {
            name: {
                tuple(row.labels[label] for label in by.split(", ")): row.value
                for row in self.ask(f"sum by ({by}) ({of.format(counter)})")
            }
            for name, (by, counter) in counted.items()
        }

    def _points(self, model: str, seconds: int) -> dict[str, list[float]]:
        """Lane -> seconds: the 95th percentile of each interval in which it answered."""
        interval = f"{ceil(2 * self.scrape)}s"
        buckets = f'loopline_request_seconds_bucket{{model="{model}",{LANES},{ROUTES}}}'
        rate = f"sum by (lane, le) (rate({buckets}[{interval}]))"
        rows = self.ask(f"histogram_quantile(0.95, {rate})[{seconds}s:{interval}]")
        found = {row.labels["lane"]: [value for _, value in row.points if isfinite(value)] for row in rows}
        return {lane: found.get(lane, []) for lane in (CHALLENGER, CHAMPION)}


def said(verdict: judge.Verdict) -> list[str]:
    """What is told of a canary that passed. Raises LooplineError with the reasons if it did not; it has to be over by then."""
    if verdict.action != "pass":
        raise LooplineError("\n  ".join(["the canary did not pass, the champion serves all:", *verdict.reasons]))
    return ["it passed; `deploy` the same goes on from there:", *(f"  {reason}" for reason in verdict.reasons)]


def _lane(grown: Counts, lane: str, model: str, version: str, points: list[float]) -> judge.LaneCounts:
    requests = int(grown["requests"].get((lane, model), 0))
    return judge.LaneCounts(
        requests=requests,
        errors=int(grown["errors"].get((lane, model), 0)),
        step=requests,
        seconds=np.array(points),
        classes={key[2]: n for key, n in grown["classes"].items() if key[:2] == (lane, model)},
        labelled=grown["labelled"].get((model, version), 0.0),
        right=grown["right"].get((model, version), 0.0),
    )


def _share(ours: judge.LaneCounts, theirs: judge.LaneCounts) -> float:
    """Of the requests of both: the challenger's."""
    total = ours.requests + theirs.requests
    return ours.requests / total if ours.requests and theirs.requests else 0.5


def _worst(found: dict[str, judge.Verdict]) -> judge.Verdict:
    """One verdict on all models; each reason names its own."""
    for action in ("roll back", "hold", "pass"):
        if these := {model: verdict for model, verdict in found.items() if verdict.action == action}:
            said = [f"{model}: {why}" if model else why for model, verdict in these.items() for why in verdict.reasons]
            return judge.Verdict(action, tuple(said))
    raise AssertionError("there is always one")
