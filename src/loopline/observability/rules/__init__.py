"""Recording rules and alerts: service.yml and drift.yml of this folder, with the constants and the window filled in.

From them, `loopline rules` writes monitoring/prometheus/rules.yml, and `loopline grafana write` writes Grafana's alert rules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopline.drift.harm import CLASS_DRIFT, DOUBT, MIXTURE
from loopline.drift.statistic import WEIGHTS
from loopline.drift.thresholds import EVALUATIONS

RUNBOOKS = "docs/runbooks"  # `loopline rules --runbooks` takes the folder's address on a web site instead
WINDOW = "1h"
AVAILABILITY, FAST_ENOUGH = 0.999, 0.99  # objectives: share of requests answered, and of these within LATENCY seconds
LATENCY = 0.25
STALE_DAYS = 90
FEW = 100  # requests: one refusal among fewer does not count as burnt error budget
FRESH = 130  # seconds: servers are scraped every two minutes or more often
SERVED = f"(time() - timestamp(loopline_model_info) < {FRESH})"
SELDOM = 120  # seconds: Prometheus forgets a recorded value after five minutes
ALPHA = 0.05  # chance that a confidence sequence ever leaves the true quality out
LABELS_FOR = 6  # windows whose labels are judged together, since labels come late
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# A counter's increase outlives its server by the length of its range. If a server ends together with Prometheus, all its series
# outlive it by five minutes. So a rule of a served version requires that a server exported that version within FRESH seconds.
OF_SERVED = {
    None: "{}",
    "version": f"({{}}) and on (model, version) {SERVED}",
    "model": f"({{}}) and on (model) {SERVED}",
}


@dataclass(frozen=True)
class Recording:
    """A series that Prometheus computes."""

    name: str
    expr: str


@dataclass(frozen=True)
class AlertRule:
    """An alert. severity: info, notice, warning, critical, or retrain, which the retrainer listens to."""

    name: str
    expr: str
    summary: str
    description: str
    severity: str
    hold: str  # how long the condition must hold before the alert fires: Prometheus' `for`
    keep: str  # how long the alert fires after the condition's end: `keep_firing_for`


@dataclass(frozen=True)
class RuleGroup:
    """Rules that Prometheus evaluates in this order, every `interval`."""

    name: str
    interval: str
    recordings: tuple[Recording, ...]
    alerts: tuple[AlertRule, ...]


def groups(window: str = WINDOW) -> tuple[RuleGroup, ...]:
    """All rules. window: length of the traffic window, in which the drift rules are evaluated at least EVALUATIONS times."""
    return tuple(_group(name, _constants(window)) for name in ("service", "drift"))


def _constants(window: str) -> dict[str, str]:
    """The values of the words in <angles>."""
    length = seconds(window)
    return {
        "SERVED": SERVED,
        "FEW": str(FEW),
        "LATENCY": str(LATENCY),
        "LATENCY_MS": f"{LATENCY * 1000:.0f}",
        "AVAILABILITY": f"{AVAILABILITY:.4g}",
        "ERRORS": f"{1 - AVAILABILITY:.4g}",
        "FAST_ENOUGH": f"{FAST_ENOUGH:.4g}",
        "SLOW": f"{1 - FAST_ENOUGH:.4g}",
        "STALE_DAYS": str(STALE_DAYS),
        "LEAST_WEIGHT": str(WEIGHTS[0]),
        "MOST_WEIGHT": str(WEIGHTS[1]),
        "CLASS_DRIFT": str(CLASS_DRIFT),
        "DOUBT": str(DOUBT),
        # The next two are terms of `drift.harm.confidence_sequence`.
        "MIXTURE": f"{MIXTURE / 4:g}",
        "BOUND": f"{MIXTURE / 4 * ALPHA**2:g}",
        "window": window,
        "interval": duration(min(length / EVALUATIONS, SELDOM)),
        "quarter": duration(length / 4),
        "twice": duration(2 * length),
        "six": duration(6 * length),
        "labels": duration(LABELS_FOR * length),
    }


def _group(name: str, constants: dict[str, str]) -> RuleGroup:
    import yaml

    def filled(value: Any) -> Any:
        return re.sub(r"<(\w+)>", lambda word: constants[word[1]], value) if isinstance(value, str) else value

    def expression(row: dict[str, Any]) -> str:
        return OF_SERVED[row.get("of_served")].format(row["expr"])

    content = yaml.safe_load(Path(__file__).with_name(f"{name}.yml").read_text(encoding="utf-8"))
    recordings, alerts = (
        [{key: filled(value) for key, value in row.items()} for row in content[key]] for key in ("recordings", "alerts")
    )
    return RuleGroup(
        content["name"],
        filled(content["interval"]),
        tuple(Recording(row["record"], expression(row)) for row in recordings),
        tuple(
            AlertRule(
                name=row["alert"],
                expr=expression(row),
                summary=row["summary"],
                description=row["description"],
                severity=row["severity"],
                hold=row.get("for", "0s"),
                keep=row.get("keep_firing_for", "0s"),
            )
            for row in alerts
        ),
    )


def prometheus(window: str = WINDOW, runbooks: str = RUNBOOKS) -> dict[str, Any]:
    """The content of a Prometheus rule file. runbooks: address of the folder docs/runbooks."""
    return {
        "groups": [
            {
                "name": group.name,
                "interval": group.interval,
                "rules": [
                    *({"record": recording.name, "expr": recording.expr} for recording in group.recordings),
                    *(_alert(alert, runbooks) for alert in group.alerts),
                ],
            }
            for group in groups(window)
        ]
    }


def text(window: str = WINDOW, runbooks: str = RUNBOOKS) -> str:
    """The rule file of `prometheus` as YAML."""
    return _yaml(prometheus(window, runbooks))


def operator(window: str = WINDOW, runbooks: str = RUNBOOKS) -> str:
    """The rules as the YAML of a PrometheusRule, which the Prometheus operator reads in a Kubernetes cluster."""
    head = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "loopline"}}
    return _yaml(head | {"spec": prometheus(window, runbooks)})


def seconds(duration: str) -> int:
    """The seconds of a duration such as 90s, 5m, 1h or 2d. Raises ValueError on anything else."""
    if not (match := re.fullmatch(r"(\d+)([smhd])", duration)) or match[1] == "0":
        raise ValueError(f"{duration!r} is no duration: write 90s, 5m, 1h or 2d")
    return int(match[1]) * UNITS[match[2]]


def duration(count: float) -> str:
    """A number of seconds as Prometheus writes a duration, in the largest unit that gives a whole number."""
    rounded = max(1, round(count))
    return next((f"{rounded // UNITS[u]}{u}" for u in "dhm" if rounded % UNITS[u] == 0), f"{rounded}s")


def _yaml(content: dict[str, Any]) -> str:
    import yaml

    head = "# Made by `loopline rules`; change src/loopline/observability/rules instead.\n"
    return head + str(yaml.safe_dump(content, sort_keys=False, width=135, allow_unicode=True))


def _alert(alert: AlertRule, runbooks: str) -> dict[str, Any]:
    times = {"for": alert.hold, "keep_firing_for": alert.keep}
    return {
        "alert": alert.name,
        "expr": alert.expr,
        **{key: value for key, value in times.items() if value != "0s"},
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": f"{runbooks}/{alert.name}.md",
        },
    }
