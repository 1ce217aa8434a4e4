"""The dashboards: Overview here, the others beside. A test holds every series they name against the catalogue."""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from loopline.observability.grafana import drift, retraining, service
from loopline.observability.grafana.panels import ASKED, MANY, MODELS, dashboard, figure, rows, series
from loopline.observability.rules.service import AVAILABILITY, FAST_ENOUGH, LATENCY, STALE_DAYS


def contents() -> dict[str, dict[str, Any]]:
    """Each dashboard by its uid, as the HTTP API takes it."""
    found = {}
    for made in (overview(), service.service(), drift.drift(), retraining.retraining()):
        content: dict[str, Any] = json.loads(JSONEncoder().encode(made.build()))
        for number, panel in enumerate(content["panels"], start=1):
            panel["id"] = number  # Grafana would number them itself, and then what it exports is not what was written
            panel.get("options", {}).pop("footer", None)  # the SDK's default, which Grafana 13 does not know
        for variable in content["templating"]["list"]:
            for key in ("auto", "auto_count", "auto_min"):  # the same: they are of variables of another type
                variable.pop(key, None)
        found[str(content["uid"])] = content
    return found


def text(content: dict[str, Any]) -> str:
    """As it is committed: sorted, so that what Grafana exports can be compared."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def overview() -> Dashboard:
    """Is it well? Which version serves where?"""
    firing = 'ALERTS{alertstate="firing",model=~"$model|"}'  # an alert of a server has no model
    served = f"max by (model, version, precision, provider, instance) (loopline_model_info{{{MANY}}})"
    return dashboard(
        "overview",
        "Is it well, and which version serves where?",
        MODELS,
        figure(
            "Servers down",
            "Servers that do not answer Prometheus.",
            "none",
            'count(up{job="loopline"} == 0) or vector(0)',
            {1: "red"},
        ),
        figure(
            "Servers ready",
            "Servers that take requests.",
            "none",
            "sum(loopline_ready) or vector(0)",
            {0: "red", 1: "green"},
        ),
        figure(
            "Alerts firing",
            "Of Prometheus' rules. Those that Grafana evaluates are under Alerting.",
            "none",
            f"count({firing}) or vector(0)",
            {1: "orange"},
        ),
        figure(
            "Largest drift score",
            "Over 1, traffic differs from the reference.",
            "none",
            f"max(loopline:drift_score{{{MANY}}})",
            {0.8: "yellow", 1: "orange"},
        ),
        figure(
            "Largest loss of quality",
            "Estimated without labels, from the model's own confidence, against that on the reference.",
            "percentunit",
            f"max(loopline:quality_loss{{{MANY}}})",
            {0.02: "yellow", 0.05: "red"},
        ),
        figure(
            "Oldest model",
            f"Since its bundle came to its server; over {STALE_DAYS} days there is an alert.",
            "s",
            f"time() - min(loopline_bundle_written_timestamp_seconds{{{MANY}}})",
            {STALE_DAYS * 86400: "orange"},
        ),
        rows("What serves where", "Each server's bundles, with their precision and runtime.", {"": served}),
        rows("Alerts that fire", "What to do is in docs/runbooks, a page an alert.", {"": firing}, "alertstate", "job"),
        series(
            "Drift score",
            "The largest over the model's signals, in thresholds. Over 1 it is an alarm.",
            "none",
            {"{{model}} {{version}}": f"loopline:drift_score{{{MANY}}}"},
            limit=1,
        ),
        series(
            "Quality",
            "Estimated without labels, on what was labelled, and on the reference.",
            "percentunit",
            {
                "labelled {{model}} {{version}}": f"loopline:quality_labelled{{{MANY}}}",
                "{{model}} {{version}}": f"avg by (model, version) (loopline:quality_estimated{{{MANY}}})",
                "reference {{model}} {{version}}": f"max by (model, version) (loopline_quality_reference{{{MANY}}})",
            },
            zero=False,
        ),
        series(
            "Requests",
            "A second, by model.",
            "reqps",
            {"{{model}}": f"sum by (model) (rate(loopline_requests_total{{{ASKED},{MANY}}}[$__rate_interval]))"},
        ),
        series(
            "Requests that are not answered",
            "Share over 5 minutes. The line is the objective.",
            "percentunit",
            {"{{model}}": f"loopline:errors:ratio_5m{{{MANY}}}"},
            limit=round(1 - AVAILABILITY, 6),
        ),
        series(
            "Slow answers",
            f"Share that took over {LATENCY * 1000:.0f} ms, over 5 minutes. The line is the objective.",
            "percentunit",
            {"{{model}}": f"loopline:slow:ratio_5m{{{MANY}}}"},
            limit=round(1 - FAST_ENOUGH, 6),
        ),
        series(
            "Golden inputs",
            "What the sentinel's golden inputs brought back, over 10 minutes: `different` is training-serving skew.",
            "none",
            {
                "{{model}} {{result}}": f"sum by (model, result) (increase(loopline_sentinel_checks_total{{{MANY}}}[10m]))"
            },
        ),
    )
