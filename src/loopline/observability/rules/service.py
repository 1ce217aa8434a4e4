"""Rules about the service: is it up, does it answer in time, what is it asked, and do its helpers work?"""

from __future__ import annotations

from collections.abc import Callable

from loopline.observability.rules.parts import SERVED, AlertRule, Recording, RuleGroup, of_served_model, served

AVAILABILITY, FAST_ENOUGH = 0.999, 0.99  # objectives: share of requests answered, and of these within LATENCY seconds
LATENCY = 0.25
FEW = 100  # requests: one refusal among fewer is no burnt budget
STALE_DAYS = 90


def group() -> RuleGroup:
    """Multi-window burn rates are those of the SRE workbook, chapter 5."""

    def bad(span: str) -> str:
        return (
            f'sum by (model) (rate(loopline_requests_total{{route=~"infer|predict",code=~"429|5.."}}[{span}]))'
            f' / (sum by (model) (rate(loopline_requests_total{{route=~"infer|predict"}}[{span}])) > 0)'
        )

    def slow(span: str) -> str:
        return (
            f'1 - sum by (model) (rate(loopline_request_seconds_bucket{{route=~"infer|predict",le="{LATENCY}"}}[{span}]))'
            f' / (sum by (model) (rate(loopline_request_seconds_count{{route=~"infer|predict"}}[{span}])) > 0)'
        )

    requests = 'loopline_requests_total{route=~"infer|predict"}'
    spans = ("5m", "30m", "1h", "6h")
    recordings = [Recording(f"loopline:errors:ratio_{span}", bad(span)) for span in spans]
    recordings += [Recording(f"loopline:slow:ratio_{span}", slow(span)) for span in spans]

    def burn(kind: str, long: str, short: str, factor: float, budget: float) -> str:
        over = [f"(loopline:{kind}:ratio_{span} > {factor} * {budget:.4g})" for span in (long, short)]
        enough = f"on (model) (sum by (model) (increase({requests}[{long}])) > {FEW})"
        return of_served_model(" and ".join([*over, enough]))

    def burning(name: str, kind: str, what: str, budget: float) -> Callable[[str, str, str, float, str], AlertRule]:
        def of(speed: str, long: str, short: str, factor: float, severity: str) -> AlertRule:
            return AlertRule(
                f"{name}{speed}",
                burn(kind, long, short, factor, budget),
                f"{{{{ $labels.model }}}}: {what}",
                f"{{{{ $value | humanizePercentage }}}} over {long}, {factor:g} times what the objective of {1 - budget:.4g} allows.",
                severity,
                keep="5m",
            )

        return of

    errors = burning("ErrorBudgetBurn", "errors", "requests are not answered", 1 - AVAILABILITY)
    slowness = burning("LatencyBudgetBurn", "slow", f"answers take over {LATENCY * 1000:.0f} ms", 1 - FAST_ENOUGH)
    refused = 'loopline_requests_total{route=~"infer|predict",code=~"400|413|415|422"}'
    alerts = (
        AlertRule(
            "ServerDown",
            'up{job="loopline"} == 0',
            "{{ $labels.instance }} does not answer Prometheus",
            "It has not been scraped for 2 minutes.",
            "critical",
            hold="2m",
        ),
        AlertRule(
            "NoServers",
            'absent(up{job="loopline"})',
            "Prometheus knows of no server",
            "Nothing is scraped as the job `loopline`: the list of targets is empty or wrong. No other alert can fire.",
            "critical",
            hold="5m",
        ),
        AlertRule(
            "ServerNotReady",
            'loopline_ready{job="loopline"} == 0',
            "{{ $labels.instance }} is up and takes no requests",
            "It was told to stop 5 minutes ago and is still there. (While it starts it does not listen at all.)",
            "warning",
            hold="5m",
        ),
        errors("Fast", "1h", "5m", 14.4, "critical"),
        errors("Slow", "6h", "30m", 6, "warning"),
        slowness("Fast", "1h", "5m", 14.4, "critical"),
        slowness("Slow", "6h", "30m", 6, "warning"),
        AlertRule(
            "Saturated",
            of_served_model(
                f"sum by (model) (rate(loopline_shed_total[5m])) / (sum by (model) (rate({requests}[5m])) > 0) > 0.01"
            ),
            "{{ $labels.model }}: the servers are full and refuse requests",
            "{{ $value | humanizePercentage }} of the requests were refused or came too late over 5 minutes.",
            "warning",
            hold="2m",
            keep="5m",
        ),
        AlertRule(
            "ModelFailures",
            served("sum by (model, version) (increase(loopline_execution_failures_total[15m])) > 0"),
            "{{ $labels.model }}: the model fails on some inputs",
            'Version {{ $labels.version }} failed on some inputs in 15 minutes: about {{ printf "%.0f" $value }}.',
            "warning",
            keep="15m",
        ),
        AlertRule(
            "BadInputs",
            of_served_model(
                f"sum by (model) (rate({refused}[15m])) / (sum by (model) (rate({requests}[15m])) > 0) > 0.05"
            ),
            "{{ $labels.model }}: clients send what cannot be read",
            "{{ $value | humanizePercentage }} of the requests were refused as unreadable, too large or of a wrong kind.",
            "warning",
            hold="5m",
            keep="15m",
        ),
        AlertRule(
            "ConstantInputs",
            served(
                "sum by (model, version) (increase(loopline_constant_rows_total[15m]))"
                ' / (sum by (model, version) (increase(loopline_signal_rows_total{signal="contrast"}[15m])) > 20) > 0.05'
            ),
            "{{ $labels.model }}: images of one colour arrive",
            "{{ $value | humanizePercentage }} of the images show nothing: a dead camera, a closed shutter, a broken decoder.",
            "warning",
            hold="5m",
            keep="15m",
        ),
        AlertRule(
            "NoTraffic",
            of_served_model(f"sum by (model) (increase({requests}[1h])) == 0"),
            "{{ $labels.model }}: nobody asks",
            "There was no request for an hour.",
            "info",
            hold="5m",
        ),
        AlertRule(
            "MixedVersions",
            f"count by (model) (count by (model, version) {SERVED}) > 1",
            "{{ $labels.model }}: {{ $value }} versions serve side by side",
            "A rollout has been under way for 6 hours, or one server was forgotten.",
            "info",
            hold="6h",
        ),
        AlertRule(
            "BundleChanged",
            served('loopline_bundle_intact{job="loopline"} == 0'),
            "{{ $labels.model }}: the bundle of {{ $labels.instance }} was changed on its disk",
            "What was loaded, version {{ $labels.version }}, is still served. A restart would serve something else, or nothing.",
            "warning",
            hold="1m",
        ),
        AlertRule(
            "StaleModel",
            served(
                f"time() - max by (model, version) (loopline_bundle_written_timestamp_seconds) > {STALE_DAYS} * 86400"
            ),
            "{{ $labels.model }}: the model is old",
            f"Version {{{{ $labels.version }}}} came to its server over {STALE_DAYS} days ago.",
            "info",
        ),
        AlertRule(
            "Skew",
            served('sum by (model, version) (increase(loopline_sentinel_checks_total{result="different"}[10m])) > 0'),
            "{{ $labels.model }}: it does not answer as it did in training",
            '{{ printf "%.0f" $value }} golden checks got another answer in 10 minutes: preprocessing, bundle or runtime differ.',
            "critical",
            keep="10m",
        ),
        AlertRule(
            "SentinelSilent",
            f"max by (model) {SERVED} unless on (model)"
            ' (sum by (model) (increase(loopline_sentinel_checks_total{result=~"same|different"}[10m])) > 0)',
            "{{ $labels.model }}: no golden input was checked",
            "The sentinel gets no answer from the model, or another version than its bundle's is served.",
            "warning",
            hold="5m",
        ),
        AlertRule(
            "RetrainingFailed",
            of_served_model('sum by (model) (increase(loopline_retrain_runs_total{result="failed"}[1h])) > 0'),
            "{{ $labels.model }}: a retraining broke down",
            "A run of the last hour failed: no candidate came out of it, and the model in service is still the one that drifts.",
            "warning",
            keep="1h",
        ),
    )
    return RuleGroup("loopline-service", "30s", tuple(recordings), alerts)
