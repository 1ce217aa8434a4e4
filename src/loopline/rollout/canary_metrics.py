"""Judge a canary by what Prometheus counts in its two lanes: for containers and clusters, which have no log line for each answer.

The judge is `rollout.judge`. Three things differ from a rollout behind the local gateway: the baseline is the champion itself, so
it gets more requests than the challenger; a point of latency is the 95th percentile of an interval; and no shadow has measured
how far apart the predicted classes may be.
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
    """The wait for a canary's verdict.

    ask: evaluates an expression in Prometheus, as of now. sick: returns why the challenger's servers are not healthy, empty if
    they are; raises LooplineError if the canary is over. scrape: seconds between two scrapes by Prometheus; an interval is two of
    them.
    """

    ask: Ask
    sick: Callable[[], str]
    plan: RolloutPlan
    scrape: float = 15.0

    def verdict(self, models: Sequence[str] = ()) -> judge.Verdict:
        """Wait until the judge has a verdict on all of these models (default: all that the challenger serves), and return it.

        If the time runs out first, the verdict is "hold", which never counts as a pass. Raises LooplineError if somebody ends the
        canary meanwhile.
        """
        policy = replace(self.plan.policy, slice=1)  # a point is already the percentile of an interval
        began, before = time.monotonic(), None
        while True:
            sick = self.sick()
            try:
                seconds = time.monotonic() - began
                if before is None:
                    before = self._counts("{}")
                    began, seconds = time.monotonic(), 0.0
                verdicts = self._judged(models, before, ceil(seconds) or 1, sick, policy)
            except LooplineError as error:  # Prometheus may be away for a while, and without it there is no evidence
                verdict = judge.Verdict("roll back", (sick,)) if sick else judge.Verdict("hold", (str(error),))
                verdicts = {"": verdict}
            worst = _worst(verdicts)
            if worst.action != "hold":
                return worst
            if time.monotonic() - began > self.plan.hold:
                return judge.Verdict("hold", (f"no verdict within {self.plan.hold:g} s", *worst.reasons))
            time.sleep(max(self.plan.every, self.scrape / 2))

    def _judged(
        self, models: Sequence[str], before: Counts, seconds: int, sick: str, policy: judge.RolloutPolicy
    ) -> dict[str, judge.Verdict]:
        """Model -> verdict on what was counted since `before`, `seconds` ago."""
        now = self._counts(f"max_over_time({{}}[{seconds}s])")
        grown = {
            name: {key: max(count - before[name].get(key, 0.0), 0.0) for key, count in rows.items()}
            for name, rows in now.items()
        }
        versions = {
            (row.labels["lane"], row.labels["model"]): row.labels["version"]
            for row in self.ask(f"loopline_model_info{{{LANES}}}")
        }
        on_trial = [model for lane, model in sorted(versions) if lane == CHALLENGER]
        verdicts = {}
        for model in models or on_trial:
            both = [versions.get((lane, model), "") for lane in (CHALLENGER, CHAMPION)]
            if not all(both):
                reasons = (sick or f"Prometheus has not seen both lanes of {model} yet",)
                verdicts[model] = judge.Verdict("roll back" if sick else "hold", reasons)
                continue
            points = self._points(model, seconds)
            challenger, champion = (
                _lane(grown, lane, model, version if both[0] != both[1] else "", points[lane])
                for lane, version in zip((CHALLENGER, CHAMPION), both, strict=True)
            )
            invalid = sum(count for key, count in grown["invalid"].items() if key[:2] == (CHALLENGER, model))
            evidence = judge.RolloutEvidence(challenger=challenger, baseline=champion, sick=sick, invalid=int(invalid))
            verdicts[model] = judge.canary(replace(evidence, share=_share(challenger, champion)), policy)
        return verdicts or {"": judge.Verdict("hold", ("Prometheus has not seen the challenger's servers yet",))}

    def _counts(self, template: str) -> Counts:
        """Name of a count -> label values -> count. template: an expression around the counter, which takes the place of `{}`.

        Over a range the template is the maximum of each series and not `increase`: `increase` omits the first value of a series,
        and so the first errors of a lane. The maximum also includes servers that an autoscaler has removed meanwhile.
        """
        sure = "|".join(SURE)
        counters = {
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
                for row in self.ask(f"sum by ({by}) ({template.format(counter)})")
            }
            for name, (by, counter) in counters.items()
        }

    def _points(self, model: str, seconds: int) -> dict[str, list[float]]:
        """Lane -> the 95th percentile of latency in seconds, for each interval in which the lane answered."""
        interval = f"{ceil(2 * self.scrape)}s"
        buckets = f'loopline_request_seconds_bucket{{model="{model}",{LANES},{ROUTES}}}'
        rate = f"sum by (lane, le) (rate({buckets}[{interval}]))"
        rows = self.ask(f"histogram_quantile(0.95, {rate})[{seconds}s:{interval}]")
        points = {row.labels["lane"]: [value for _, value in row.points if isfinite(value)] for row in rows}
        return {lane: points.get(lane, []) for lane in (CHALLENGER, CHAMPION)}


def said(verdict: judge.Verdict) -> list[str]:
    """Return the lines that report a canary that passed. Raises LooplineError with the reasons if it did not pass.

    A canary that did not pass must be ended before this call, because the error says that the champion serves all requests.
    """
    if verdict.action != "pass":
        raise LooplineError(
            "\n  ".join(["the canary did not pass; the champion serves all requests:", *verdict.reasons])
        )
    return ["the canary passed; `deploy` the same to promote it:", *(f"  {reason}" for reason in verdict.reasons)]


def _lane(grown: Counts, lane: str, model: str, version: str, points: list[float]) -> judge.LaneCounts:
    requests = int(grown["requests"].get((lane, model), 0))
    return judge.LaneCounts(
        requests=requests,
        errors=int(grown["errors"].get((lane, model), 0)),
        step=requests,
        seconds=np.array(points),
        classes={key[2]: count for key, count in grown["classes"].items() if key[:2] == (lane, model)},
        labelled=grown["labelled"].get((model, version), 0.0),
        right=grown["right"].get((model, version), 0.0),
    )


def _share(challenger: judge.LaneCounts, champion: judge.LaneCounts) -> float:
    """The challenger's share of the requests of both lanes; 0.5 while a lane has none."""
    total = challenger.requests + champion.requests
    return challenger.requests / total if challenger.requests and champion.requests else 0.5


def _worst(verdicts: dict[str, judge.Verdict]) -> judge.Verdict:
    """The worst verdict of all models; each reason names its model."""
    for action in ("roll back", "hold", "pass"):
        if selected := {model: verdict for model, verdict in verdicts.items() if verdict.action == action}:
            reasons = [
                f"{model}: {why}" if model else why for model, verdict in selected.items() for why in verdict.reasons
            ]
            return judge.Verdict(action, tuple(reasons))
    raise AssertionError("verdicts is never empty")
