"""Grafana's own alerts, in the format of its provisioning files, made from the same rules as Prometheus' alerts.

They query series that Prometheus records, so they need its rule file too. Names in capitals after a `$` are environment variables
that Grafana reads.
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
    """The rule groups with their alerts. Recording rules are left out, since Grafana reads Prometheus' recorded series."""
    rule_groups = []
    for group in rules.groups(window):
        interval = -(-rules.seconds(group.interval) // SCHEDULER) * SCHEDULER
        alerts = [_rule(alert, interval, runbooks) for alert in group.alerts]
        head = {"orgId": 1, "name": group.name, "folder": FOLDER, "interval": f"{interval}s"}
        rule_groups.append(head | {"rules": alerts})
    return rule_groups


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
        # keepFiringFor keeps an alert only while its series exists, but the series of these alerts end with their condition. So
        # the alert ends after as many evaluations without a series as fit into Prometheus' keep_firing_for.
        "missing_series_evals_to_resolve": 1 + -(-keep // interval),
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": template(alert.summary),
            "description": template(alert.description),
            "runbook_url": f"{runbooks}/{alert.name}.md",
        },
    }


def _data(expr: str) -> list[dict[str, Any]]:
    """The queries of an alert. A: the expression. B: 1 for every series of A. C: fires if B is above 0.

    Prometheus fires on every series, but Grafana only on values other than 0, and the series of `up == 0` have the value 0. B is
    the expression that Grafana's own import of Prometheus rules writes.
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
    """A text of Prometheus' templates in Grafana's form.

    In Grafana, `$value` is a sentence, so the number is taken from `$values`. Grafana's templates cannot query, so the clause with
    a query is left out, from the comma or full stop before it.
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
    """The route of alerts to the retrainer: those of severity retrain."""
    return {
        "receiver": RETRAINER,
        "object_matchers": [["severity", "=", "retrain"]],
        "group_by": ["alertname", "model"],
    }


def policies() -> dict[str, Any]:
    """The routes: severity=retrain to the retrainer, all else to the contact point that DEFAULT_CONTACT_POINT names."""
    # The default contact point has to be named, since Grafana calls it grafana-default-email before version 13 and empty after.
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
