"""The dashboard Retraining and rollout."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from loopline.observability.grafana.panels import ASKED, MANY, MODELS, dashboard, figure, series

LANES = 'proxy=~"champion|baseline|challenger"'


def retraining() -> Dashboard:
    """What was decided, what was trained, and who answers?"""
    by_version = f"sum by (version) (rate(loopline_requests_total{{{ASKED},{MANY}}}[$__rate_interval]))"
    by_lane = f"sum by (proxy) (rate(haproxy_backend_http_requests_total{{{LANES}}}[$__rate_interval]))"
    broken = f'sum by (proxy) (rate(haproxy_backend_http_responses_total{{{LANES},code="5xx"}}[$__rate_interval]))'
    slow = f"sum by (version, le) (rate(loopline_request_seconds_bucket{{{ASKED},{MANY}}}[$__rate_interval]))"
    return dashboard(
        "retraining",
        "What was decided, what was trained, and who answers?",
        MODELS,
        figure(
            "A run is under way", "1 while the retrainer trains.", "none", "max(loopline_retrain_running)", {1: "blue"}
        ),
        figure(
            "Retrainings in 30 days",
            "Runs that ended, whatever came of them.",
            "none",
            f"sum(increase(loopline_retrain_runs_total{{{MANY}}}[30d]))",
            {6: "orange"},
        ),
        figure(
            "That broke down",
            "Runs in 30 days without a candidate.",
            "none",
            f'sum(increase(loopline_retrain_runs_total{{{MANY},result="failed"}}[30d]))',
            {1: "red"},
        ),
        figure(
            "Versions side by side",
            "More than 1 while a rollout is under way.",
            "none",
            f"max(count by (model) (count by (model, version) (loopline_model_info{{{MANY}}})))",
            {2: "blue"},
        ),
        figure(
            "Labels in a day",
            "Answers whose truth became known.",
            "none",
            f"sum(increase(loopline_labelled_rows_total{{{MANY}}}[1d]))",
            {},
        ),
        figure(
            "Labels without a sample",
            "The journal does not have what they are about.",
            "none",
            "max(loopline_labels_waiting)",
            {},
        ),
        "Rollout",
        series(
            "Who answers, by version",
            "Share of the model's requests.",
            "percentunit",
            {"{{version}}": f"{by_version} / on () group_left () sum({by_version})"},
        ),
        series(
            "Lanes of the gateway",
            "Share of all requests. The baseline gets as much as the challenger.",
            "percentunit",
            {"{{proxy}}": f"{by_lane} / on () group_left () sum({by_lane})"},
        ),
        series(
            "Errors by lane",
            "Share of the lane's answers that are 5xx.",
            "percentunit",
            {"{{proxy}}": f"{broken} / ({by_lane} > 0)"},
        ),
        series(
            "Latency by version",
            "95 of 100 are faster.",
            "s",
            {"{{version}}": f"histogram_quantile(0.95, {slow})"},
        ),
        series(
            "Drift score by version",
            "Over 1 it is an alarm.",
            "none",
            {"{{model}} {{version}}": f"loopline:drift_score{{{MANY}}}"},
            limit=1,
        ),
        series(
            "Quality by version",
            "On what was labelled, and estimated without labels.",
            "percentunit",
            {
                "labelled {{model}} {{version}}": f"loopline:quality_labelled{{{MANY}}}",
                "estimated {{model}} {{version}}": f"avg by (model, version) (loopline:quality_estimated{{{MANY}}})",
            },
            zero=False,
        ),
        "Decisions and labels",
        series(
            "Decisions on alerts",
            "In an hour. Their reasons are in the decision log.",
            "none",
            {
                "{{model}} {{decision}}": f"sum by (model, decision) (increase(loopline_retrain_decisions_total{{{MANY}}}[1h]))"
            },
        ),
        series(
            "Retrainings",
            "That ended in a day, by result.",
            "none",
            {"{{model}} {{result}}": f"sum by (model, result) (increase(loopline_retrain_runs_total{{{MANY}}}[1d]))"},
        ),
        series(
            "Journal",
            "Samples kept a second, by reason, and lines that were lost.",
            "cps",
            {
                "{{model}} {{reason}}": f"sum by (model, reason) (rate(loopline_journal_rows_total{{{MANY}}}[$__rate_interval]))",
                "lost": "sum(rate(loopline_journal_lost_total[$__rate_interval]))",
            },
        ),
        series(
            "Labels",
            "That came back, a second, by how they were answered.",
            "cps",
            {"{{model}} {{code}}": f"sum by (model, code) (rate(loopline_feedback_total{{{MANY}}}[$__rate_interval]))"},
        ),
        series(
            "Samples in the journal",
            "By model.",
            "none",
            {"{{model}}": f"max by (model) (loopline_journal_entries{{{MANY}}})"},
        ),
        series("Size of the journal", "Of its parts.", "bytes", {"parts": "max(loopline_journal_bytes)"}),
    )
