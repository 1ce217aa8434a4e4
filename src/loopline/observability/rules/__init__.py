"""Recording rules and alerts, written once: Prometheus' rule file and Grafana's alert rules are both made of them.

`loopline rules` writes monitoring/prometheus/rules.yml, a test keeps it current. The statistic is that of `drift.statistic`.
"""

from __future__ import annotations

from typing import Any

from loopline.observability.rules import drift, service
from loopline.observability.rules.parts import AlertRule, Recording, RuleGroup, seconds

__all__ = [
    "RUNBOOKS",
    "WINDOW",
    "AlertRule",
    "Recording",
    "RuleGroup",
    "groups",
    "operator",
    "prometheus",
    "seconds",
    "text",
]
RUNBOOKS = "docs/runbooks"  # or the address of that folder in a forge: `loopline rules --runbooks`
WINDOW = "1h"


def groups(window: str = WINDOW) -> tuple[RuleGroup, ...]:
    """All rules. window: of traffic that is held against the reference, and looked at thirty times as often."""
    return (service.group(), drift.group(window))


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
    """The same as YAML."""
    return _yaml(prometheus(window, runbooks))


def operator(window: str = WINDOW, runbooks: str = RUNBOOKS) -> str:
    """The same as a PrometheusRule, which the Prometheus operator takes from a Kubernetes cluster."""
    head = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "loopline"}}
    return _yaml(head | {"spec": prometheus(window, runbooks)})


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
