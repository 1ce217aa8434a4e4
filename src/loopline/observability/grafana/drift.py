"""The dashboard Drift: of one version of a model, but for the first panel."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from loopline.observability.grafana.panels import bars, choice, dashboard, rows, series

ONE = 'model="$model",version="$version"'
SIGNAL = f'{ONE},signal="$signal"'


def drift() -> Dashboard:
    """What changed, by how much, and does it hurt?"""
    serving = 'query_result(max by (version) (loopline_model_info{model="$model"}))'  # now, not in the whole time range
    variables = [
        choice("model", "label_values(loopline_model_info, model)"),
        choice("version", serving).regex('/version="([^"]+)"/'),
        choice("signal", f"label_values(loopline:signal_samples:window{{{ONE}}}, signal)"),
    ]
    reference = f"max(loopline_quality_reference{{{ONE}}})"
    shares = {
        "window": f"max by (bin) (loopline:signal_share{{{SIGNAL}}})",
        "reference": f"max by (bin) (loopline_reference_share{{{SIGNAL}}})",
    }
    moved = {
        "score": f"max by (signal) (loopline:signal_score{{{ONE}}})",
        "shift": f"max by (signal) (loopline:signal_shift{{{ONE}}})",
        "before": f"max by (signal) (loopline:signal_value:reference{{{ONE}}})",
        "now": f"max by (signal) (loopline:signal_value:window{{{ONE}}})",
    }
    unreadable = (
        'sum by (code) (rate(loopline_requests_total{model="$model",code=~"400|413|415|422"}[$__rate_interval]))'
    )
    return dashboard(
        "drift",
        "What changed, by how much, and does it hurt?",
        variables,
        series(
            "Drift score of all models",
            "The largest over a model's signals, in thresholds. Over 1 it is an alarm.",
            "none",
            {"{{model}} {{version}}": "loopline:drift_score"},
            limit=1,
        ),
        series(
            "Drift score by signal",
            "Which signals moved. Over 1 it is an alarm.",
            "none",
            {"{{signal}}": f"loopline:signal_score{{{ONE}}}"},
            limit=1,
        ),
        series(
            "Quality",
            "On what was labelled and at most, two estimates without labels, on the reference, and the least before harm.",
            "percentunit",
            {
                "labelled": f"loopline:quality_labelled{{{ONE}}}",
                "labelled, at most": f"loopline:quality_labelled{{{ONE}}} + loopline:quality_labelled:radius{{{ONE}}}",
                "{{estimate}}": f"loopline:quality_estimated{{{ONE}}}",
                "reference": reference,
                "least": f"{reference} - max(loopline_quality_max_loss{{{ONE}}})",
            },
            zero=False,
        ),
        series(
            "Samples in the window",
            "With fewer than the least number there is no verdict.",
            "none",
            {
                "samples": f"loopline:drift_samples{{{ONE}}}",
                "least": f"max(loopline_drift_least_samples{{{ONE}}})",
            },
        ),
        rows(
            "Top movers",
            "Each signal's score, the share of samples that are in other bins than before, and about its mean before and now.",
            moved,
            first="score",
        ),
        bars("$signal: window and reference", "Share of the samples in each bin.", "percentunit", "bin", shares),
        "Data quality",
        rows(
            "$signal: bins",
            "The middle of each bin, and its share of the samples.",
            {"middle": f"max by (bin) (loopline_signal_bin_value{{{SIGNAL}}})", **shares},
            span=8,
        ),
        series(
            "Inputs that could not be read", "Answers a second, by status.", "reqps", {"{{code}}": unreadable}, span=8
        ),
        series(
            "Empty and broken values",
            "Images of one colour a second; share of a signal's values that are no number.",
            "none",
            {
                "one colour": f"sum(rate(loopline_constant_rows_total{{{ONE}}}[$__rate_interval]))",
                "{{signal}} no number": f'loopline:signal_share{{{ONE},bin="nan"}} > 0',
            },
            span=8,
        ),
    )
