"""Grafana's own alerts, as provisioning files have them: made of the same rules as Prometheus' alerts.

They ask Prometheus for the recorded series, so its rule file is needed beside them. Names in capitals after a `$` are environment
variables that Grafana reads.
"""

from __future__ import annotations

import re
from typing import Any

from loopline.observability import rules
from loopline.observability.grafana import SOURCE

FOLDER = "Loopline"
RETRAINER = "loopline-retrainer"  # the contact point's name and uid
SCHEDULER = 10  # seconds: Grafana evaluates at multiples of it
EXPRESSION = "__expr__"


def groups(window: str = rules.WINDOW, runbooks: str = rules.RUNBOOKS) -> list[dict[str, Any]]:
    """Rule groups: alerts alone, for what Prometheus records it records for Grafana too."""
    found = []
    for group in rules.groups(window):
        interval = -(-rules.seconds(group.interval) // SCHEDULER) * SCHEDULER
        alerts = [_rule(alert, interval, runbooks) for alert in group.alerts]
        found.append({"orgId": 1, "name": group.name, "folder": FOLDER, "interval": f"{interval}s", "rules": alerts})
    return found


def _rule(alert: rules.AlertRule, interval: int, runbooks: str) -> dict[str, Any]:
    keep = 0 if alert.keep == "0s" else rules.seconds(alert.keep)
    return {
        "uid": f"loopline-{alert.name}",
        "title": alert.name,
        "condition": "C",
        "data": _data(alert.expr),
        "noDataState": "OK",
        "execErrState": "Error",
        "for": alert.hold,
        "keepFiringFor": alert.keep,
        # keepFiringFor holds an alert whose series is still there. Ours are gone when their condition ends: so many evaluations
        # without them end the alert, as many as Prometheus' keep_firing_for lasts.
        "missing_series_evals_to_resolve": 1 + -(-keep // interval),
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": template(alert.summary),
            "description": template(alert.description),
            "runbook_url": f"{runbooks}/{alert.name}.md",
        },
    }


def _data(expr: str) -> list[dict[str, Any]]:
    """Prometheus fires on every series there is; Grafana on values other than 0, and `up == 0` has just that.

    So B says for each series that it is there, in the words of Grafana's own import of Prometheus rules, and C fires on that.
    """
    return [
        {
            "refId": "A",
            "relativeTimeRange": {"from": 600, "to": 0},
            "datasourceUid": SOURCE,
            "model": {
                "refId": "A",
                "datasource": {"type": "prometheus", "uid": SOURCE},
                "expr": expr,
                "instant": True,
                "range": False,
            },
        },
        _expression("B", "math", expression="is_number($A) || is_nan($A) || is_inf($A)"),
        _expression("C", "threshold", expression="B", conditions=[{"evaluator": {"type": "gt", "params": [0]}}]),
    ]


def _expression(ref: str, kind: str, **more: Any) -> dict[str, Any]:
    model = {"refId": ref, "datasource": {"type": EXPRESSION, "uid": EXPRESSION}, "type": kind, **more}
    return {"refId": ref, "relativeTimeRange": {"from": 0, "to": 0}, "datasourceUid": EXPRESSION, "model": model}


def template(text: str) -> str:
    """A text of Prometheus' templates as Grafana can fill it in: its `$value` is a sentence, and it can't query.

    What leads to a query is left out, from the comma or full stop before it.
    """
    head, query, _ = text.partition("{{ range query")
    if query:
        head = re.split(r"[,.] (?=[^,.]*$)", head)[0] + ". More is on the dashboard Loopline / Drift."
    return head.replace("$value", "$values.A.Value")


def contact_points() -> dict[str, Any]:
    """The retrainer's webhook, at the address in RETRAINER_URL, signed with the secret in RETRAINER_SECRET."""
    receiver = retrainer("$RETRAINER_URL", "$RETRAINER_SECRET")
    name = receiver.pop("name")
    return {"contactPoints": [{"orgId": 1, "name": name, "receivers": [receiver]}]}


def retrainer(url: str, secret: str) -> dict[str, Any]:
    """The contact point as the HTTP API takes it.

    The signature is the hex HMAC-SHA256 of "timestamp:body"; the timestamp is in seconds and in a header of its own.
    """
    signed = {
        "secret": secret,
        "header": "X-Grafana-Alerting-Signature",
        "timestampHeader": "X-Grafana-Alerting-Timestamp",
    }
    settings = {"url": url, "httpMethod": "POST", "hmacConfig": signed}
    return {"uid": RETRAINER, "name": RETRAINER, "type": "webhook", "settings": settings}


def route() -> dict[str, Any]:
    """What the retrainer hears of."""
    return {
        "receiver": RETRAINER,
        "object_matchers": [["severity", "=", "retrain"]],
        "group_by": ["alertname", "model"],
    }


def policies() -> dict[str, Any]:
    """The retrainer hears of severity=retrain, the contact point named in DEFAULT_CONTACT_POINT of all else."""
    # Grafana's own was called grafana-default-email and is called empty from Grafana 13 on: no name fits all.
    root = {"orgId": 1, "receiver": "$DEFAULT_CONTACT_POINT", "group_by": ["grafana_folder", "alertname"]}
    return {"policies": [{**root, "routes": [route()]}]}


def datasources() -> dict[str, Any]:
    """Prometheus, at the address in PROMETHEUS_URL."""
    settings = {"httpMethod": "POST", "timeInterval": "15s", "prometheusType": "Prometheus"}
    source = {"name": FOLDER, "uid": SOURCE, "type": "prometheus", "access": "proxy", "url": "$PROMETHEUS_URL"}
    return {"datasources": [{**source, "jsonData": settings}]}


def dashboard_providers() -> dict[str, Any]:
    """The folder of the dashboards' files in Grafana's container."""
    options = {"path": "/var/lib/grafana/dashboards/loopline"}
    return {"providers": [{"name": "loopline", "folder": FOLDER, "type": "file", "options": options}]}
