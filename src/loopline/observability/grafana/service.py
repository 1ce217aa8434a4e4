"""The dashboard Service."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from loopline.observability.grafana.panels import MODELS, THESE, VERSIONS, dashboard, density, series
from loopline.observability.rules.service import LATENCY


def service() -> Dashboard:
    """How fast, how busy, and what goes wrong?"""
    hits, misses = (f"sum by (model) ({_rate(name)})" for name in ("cache_hits_total", "cache_misses_total"))
    return dashboard(
        "service",
        "How fast, how busy, and what goes wrong?",
        MODELS + VERSIONS,
        "Requests",
        series(
            "Requests",
            "A second, by model and route.",
            "reqps",
            {"{{model}} {{route}}": f"sum by (model, route) ({_rate('requests_total')})"},
        ),
        series(
            "Errors",
            "Answers a second other than 2xx, by status.",
            "reqps",
            {"{{code}}": "sum by (code) ({})".format(_rate("requests_total", 'code!~"2.."'))},
        ),
        density(
            "Latency: how many took how long",
            "From a request's head to its answer.",
            "s",
            f"sum by (le) ({_rate('request_seconds_bucket')})",
        ),
        series(
            "Latency: half and 99 of 100 are faster",
            f"From a request's head to its answer. The objective is {LATENCY:g} s.",
            "s",
            {f"p{100 * q:.0f} {{{{model}}}}": _quantile(q, "request_seconds") for q in (0.5, 0.99)},
            limit=LATENCY,
        ),
        "Batches and queue",
        series(
            "Batch size",
            "Samples in a batch on average. The dashed line is the size that warm-up found best.",
            "none",
            {
                "{{model}}": f"sum by (model) ({_rate('batch_rows_sum')}) / sum by (model) ({_rate('batch_rows_count')})",
                "best {{model}}": f"max by (model) (loopline_best_batch_rows{{{THESE}}})",
            },
        ),
        series(
            "Time in the queue and on the model",
            "99 of 100 are faster.",
            "s",
            {f"{what} {{{{model}}}}": _quantile(0.99, f"{what}_seconds") for what in ("queue", "compute")},
        ),
        series(
            "Waiting and in flight",
            "Requests in the queue, and requests taken in and not answered.",
            "none",
            {
                "queue {{model}}": f"sum by (model) (loopline_queue_items{{{THESE}}})",
                "in flight {{model}}": f"sum by (model) (loopline_in_flight{{{THESE}}})",
            },
        ),
        series(
            "Refused because of load",
            "A second, by reason.",
            "reqps",
            {"{{model}} {{reason}}": f"sum by (model, reason) ({_rate('shed_total')})"},
        ),
        series(
            "Samples",
            "Through the model, a second, and those that it failed on.",
            "cps",
            {
                "{{model}}": f"sum by (model) ({_rate('inference_rows_total')})",
                "failed {{model}}": f"sum by (model) ({_rate('execution_failures_total')})",
            },
        ),
        series(
            "Answers from the cache",
            "Share of what was looked for. Empty where the cache is off.",
            "percentunit",
            {"{{model}}": f"{hits} / ({hits} + {misses} > 0)"},
        ),
        "Processes",
        series(
            "Processor",
            "Cores in use, by server.",
            "none",
            {"{{instance}}": 'rate(process_cpu_seconds_total{job="loopline"}[$__rate_interval])'},
        ),
        series(
            "Memory", "Resident, by server.", "bytes", {"{{instance}}": 'process_resident_memory_bytes{job="loopline"}'}
        ),
        series("Connections", "Open, by server.", "none", {"{{instance}}": "loopline_connections"}),
        series(
            "File descriptors",
            "Share of the limit, by server.",
            "percentunit",
            {"{{instance}}": 'process_open_fds{job="loopline"} / process_max_fds{job="loopline"}'},
        ),
    )


def _rate(name: str, more: str = "") -> str:
    labels = f"{THESE},{more}" if more else THESE
    return f"rate(loopline_{name}{{{labels}}}[$__rate_interval])"


def _quantile(q: float, name: str) -> str:
    return f"histogram_quantile({q:g}, sum by (model, le) ({_rate(f'{name}_bucket')}))"
