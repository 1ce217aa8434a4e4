"""Recording rules and alerts, written once: Prometheus' rule file and Grafana's alert rules are both made of them.

`loopline rules` writes monitoring/prometheus/rules.yml, a test keeps it current. The statistic is that of `drift.statistic`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loopline.monitoring.drift.calibration import EVALUATIONS
from loopline.monitoring.drift.harm import DOUBT, MIXTURE, SURE
from loopline.monitoring.drift.statistic import WEIGHTS

RUNBOOKS = "docs/runbooks"  # or the address of that folder in a forge: `loopline rules --runbooks`
WINDOW = "1h"
AVAILABILITY, FAST_ENOUGH = 0.999, 0.99  # objectives: share of requests answered, and of these within LATENCY seconds
LATENCY = 0.25
FEW = 100  # requests: one refusal among fewer is no burnt budget
STALE_DAYS = 90
ALPHA = 0.05  # chance that a confidence sequence ever leaves the true quality out
LABELS_FOR = 6  # windows whose labels are looked at together: they come late
SELDOM = 120  # seconds: Prometheus forgets a recorded value after five minutes
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Recording:
    """A series that Prometheus computes."""

    name: str
    expr: str


@dataclass(frozen=True)
class Alert:
    """An alert. severity: info, notice, warning, critical, or retrain, which the retrainer listens to."""

    name: str
    expr: str
    summary: str
    description: str
    severity: str
    hold: str = "0s"  # the condition's least time: Prometheus' `for`
    keep: str = "0s"  # and after its end: `keep_firing_for`


@dataclass(frozen=True)
class Group:
    """Rules that are evaluated one after the other, every `interval`."""

    name: str
    interval: str
    recordings: tuple[Recording, ...]
    alerts: tuple[Alert, ...]


def seconds(duration: str) -> int:
    """Of 90s, 5m, 1h, 2d. Raises ValueError on anything else."""
    if not (match := re.fullmatch(r"(\d+)([smhd])", duration)) or match[1] == "0":
        raise ValueError(f"{duration!r} is no duration: write 90s, 5m, 1h or 2d")
    return int(match[1]) * UNITS[match[2]]


def _duration(count: float) -> str:
    whole = max(1, round(count))
    return next((f"{whole // UNITS[u]}{u}" for u in "dhm" if whole % UNITS[u] == 0), f"{whole}s")


def groups(window: str = WINDOW) -> tuple[Group, ...]:
    """All rules. window: of traffic that is held against the reference, and looked at thirty times as often."""
    return (_service(), _drift(window))


def _model(series: str) -> str:
    """A figure of the bundle: all replicas export the same."""
    return f"max by (model, version) ({series})"


def _signal(series: str) -> str:
    return f"max by (model, version, signal) ({series})"


def _value(of: str, form: str) -> str:
    """Template: about the mean of the signal in the window or in the reference."""
    series = f"loopline:signal_value:{of}{{model=%q,version=%q,signal=%q}}"
    return (
        f'{{{{ range query (printf "{series}" .Labels.model .Labels.version $signal) }}}}'
        f'{{{{ printf "{form}" .Value }}}}{{{{ end }}}}'
    )


def _drift(window: str) -> Group:
    n, n_labels = "loopline:signal_samples:window", "loopline:labelled_samples"
    m = _signal("loopline_reference_samples")
    standard = f"(loopline:signal_evidence - {_signal('loopline_signal_mean')}) / {_signal('loopline_signal_sd')}"

    def term(name: str) -> str:
        series = f'loopline_drift_threshold{{term="{name}"}}'
        return f"on (model, version) group_left () {_model(series)}"

    threshold = f"{n} ^ 0 * {term('constant')} + 1 / {n} * {term('small')} + {n} / ({n} + {m}) * {term('large')}"
    enough = f"{n} >= on (model, version) group_left () {_model('loopline_drift_least_samples')}"
    bins = "max by (model, version, signal, bin)"
    values = f"{bins} (loopline_signal_bin_value)"
    known = 'loopline:signal_share{bin!="nan"}'
    before = f"{bins} (loopline_reference_share)"
    ours = "on (model, version, signal) group_left () loopline:signal_weight"
    best, classes, others = (
        _model("loopline_quality_reference"),
        'signal="predicted_class"',
        'signal!="predicted_class"',
    )
    recordings = (
        Recording(
            "loopline:signal_rows:window",
            f"sum by (model, version, signal, bin) (increase(loopline_signal_rows_total[{window}]))",
        ),
        Recording(n, "sum by (model, version, signal) (loopline:signal_rows:window)"),
        Recording(
            "loopline:signal_share",
            f"loopline:signal_rows:window / on (model, version, signal) group_left () ({n} > 0)",
        ),
        Recording(
            "loopline:signal_shift",
            f"sum by (model, version, signal) (abs(loopline:signal_share - {bins} (loopline_reference_share))) / 2",
        ),
        Recording("loopline:signal_weight", f"clamp({n} / ({n} + {m}), {WEIGHTS[0]}, {WEIGHTS[1]})"),
        Recording(
            "loopline:signal_evidence",
            f"(sum by (model, version, signal) ((loopline:signal_share - {before}) ^ 2"
            f" / ((loopline:signal_share * {ours}"
            f" + {before} * on (model, version, signal) group_left () (1 - loopline:signal_weight)) > 0))"
            f" / (1 / {n} + 1 / {m})) ^ (1 / 3)",
        ),
        Recording(
            "loopline:signal_score",
            f"({standard}) / ({threshold}) and on (model, version, signal) ({enough})",
        ),
        Recording("loopline:drift_score", "max by (model, version) (loopline:signal_score)"),
        Recording("loopline:drift_samples", f"max by (model, version) ({n})"),
        Recording(
            "loopline:signal_value:window",
            f"sum by (model, version, signal) ({known} * {values}) / (sum by (model, version, signal) ({known}) > 0)",
        ),
        Recording(
            "loopline:signal_value:reference",
            f"sum by (model, version, signal) ({bins} (loopline_reference_share) * {values})"
            f' / sum by (model, version, signal) ({bins} (loopline_reference_share{{bin!="nan",signal!="predicted_class"}}))',
        ),
        Recording(
            "loopline:quality_estimated",
            "sum by (model, version, estimate) (max by (model, version, signal, bin, estimate) (loopline_quality_weight)"
            " * on (model, version, signal, bin) group_left () loopline:signal_share)",
        ),
        Recording(
            "loopline:signal_excess",
            f"sqrt(clamp_min(loopline:signal_shift ^ 2 - {_signal('loopline_signal_noise')} ^ 2 * (1 / {n} + 1 / {m}), 0))",
        ),
        Recording("loopline:quality_loss:confidence", f"{best} - avg by (model, version) (loopline:quality_estimated)"),
        Recording(
            "loopline:quality_loss:classes",
            f"({_model(f'loopline:signal_excess{{{classes}}}')} < {_model(f'loopline:signal_excess{{{others}}}')})"
            f" and ({_model(f'loopline:signal_score{{{classes}}}')} > {SURE})",
        ),
        Recording(
            "loopline:quality_loss",
            "loopline:quality_loss:classes > loopline:quality_loss:confidence or loopline:quality_loss:confidence",
        ),
        Recording(
            "loopline:quality_limit",
            f"{_model('loopline_quality_max_loss')} + {DOUBT} * sqrt({best} * (1 - {best}) / loopline:drift_samples)",
        ),
    )
    labelled = _duration(LABELS_FOR * seconds(window))
    upper = f"({n_labels} / 4 + {MIXTURE / 4:g})"
    recordings += (
        Recording(n_labels, f"sum by (model, version) (increase(loopline_labelled_rows_total[{labelled}])) > 0"),
        Recording(
            "loopline:quality_labelled",
            f"sum by (model, version) (increase(loopline_labelled_quality_total[{labelled}])) / {n_labels}",
        ),
        Recording(
            "loopline:quality_labelled:radius",
            f"sqrt({upper} * ln({upper} / {MIXTURE / 4 * ALPHA**2:g})) / {n_labels}",
        ),
    )
    harmful = "loopline:quality_loss > loopline:quality_limit"
    drifted = "loopline:drift_score > 1"
    harm = f"({drifted}) and on (model, version) ({harmful})"
    one = "{model=%q,version=%q}"
    details = (
        'Version {{ $labels.version }}, score {{ printf "%.2f" $value }} (alarm over 1), estimated loss '
        f'{{{{ range query (printf "100 * loopline:quality_loss{one}" .Labels.model .Labels.version) }}}}'
        '{{ printf "%.1f" .Value }}{{ end }} points. Moved most: '
        f'{{{{ range $place, $one := query (printf "topk(3, loopline:signal_score{one} > 0.5)" .Labels.model .Labels.version) }}}}'
        '{{ if $place }}, {{ end }}{{ $signal := .Labels.signal }}{{ $signal }} (score {{ printf "%.1f" .Value }}'
        f"{_value('reference', ', mean %.4g')}{_value('window', ' to %.4g')}){{{{ end }}}}."
    )
    keep = _duration(seconds(window) / 4)
    alerts = (
        Alert(
            "DriftNotice",
            f"({drifted}) unless on (model, version) ({harmful})",
            "{{ $labels.model }}: traffic differs from the reference; no harm is estimated",
            details,
            "notice",
            keep=keep,
        ),
        Alert(
            "DriftWarning",
            harm,
            "{{ $labels.model }}: traffic differs from the reference and the model is worse on it, by its own confidence",
            details,
            "warning",
            keep=keep,
        ),
        Alert(
            "RetrainCandidate",
            harm,
            "{{ $labels.model }}: harmful drift that lasts; a retraining should be considered",
            details,
            "retrain",
            hold=_duration(2 * seconds(window)),
            keep=keep,
        ),
        Alert(
            "LabelledHarm",
            f"{best} - (loopline:quality_labelled + loopline:quality_labelled:radius) > {_model('loopline_quality_max_loss')}",
            "{{ $labels.model }}: labels show that the model has become worse",
            "Version {{ $labels.version }} is at least {{ $value | humanizePercentage }} worse on what was labelled than it was"
            f" on its reference; over {labelled}.",
            "retrain",
            keep=keep,
        ),
        Alert(
            "DriftNoVerdict",
            f"loopline:drift_samples > 0 < on (model, version) {_model('loopline_drift_least_samples')}",
            "{{ $labels.model }}: too little traffic to tell drift",
            'Version {{ $labels.version }} saw {{ printf "%.0f" $value }} samples in the window.',
            "info",
            hold=_duration(seconds(window) * 6),
        ),
    )
    return Group("loopline-drift", _duration(min(seconds(window) / EVALUATIONS, SELDOM)), recordings, alerts)


def _service() -> Group:
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
        return " and ".join([*over, f"on (model) (sum by (model) (increase({requests}[{long}])) > {FEW})"])

    def burning(name: str, kind: str, what: str, budget: float) -> Callable[[str, str, str, float, str], Alert]:
        def of(speed: str, long: str, short: str, factor: float, severity: str) -> Alert:
            return Alert(
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
        Alert(
            "ServerDown",
            'up{job="loopline"} == 0',
            "{{ $labels.instance }} does not answer Prometheus",
            "It has not been scraped for 2 minutes.",
            "critical",
            hold="2m",
        ),
        Alert(
            "NoServers",
            'absent(up{job="loopline"})',
            "Prometheus knows of no server",
            "Nothing is scraped as the job `loopline`: the list of targets is empty or wrong. No other alert can fire.",
            "critical",
            hold="5m",
        ),
        Alert(
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
        Alert(
            "Saturated",
            f"sum by (model) (rate(loopline_shed_total[5m])) / (sum by (model) (rate({requests}[5m])) > 0) > 0.01",
            "{{ $labels.model }}: the servers are full and refuse requests",
            "{{ $value | humanizePercentage }} of the requests were refused or came too late over 5 minutes.",
            "warning",
            hold="2m",
            keep="5m",
        ),
        Alert(
            "ModelFailures",
            "sum by (model, version) (increase(loopline_execution_failures_total[15m])) > 0",
            "{{ $labels.model }}: the model fails on some inputs",
            'Version {{ $labels.version }} failed on some inputs in 15 minutes: about {{ printf "%.0f" $value }}.',
            "warning",
            keep="15m",
        ),
        Alert(
            "BadInputs",
            f"sum by (model) (rate({refused}[15m])) / (sum by (model) (rate({requests}[15m])) > 0) > 0.05",
            "{{ $labels.model }}: clients send what cannot be read",
            "{{ $value | humanizePercentage }} of the requests were refused as unreadable, too large or of a wrong kind.",
            "warning",
            hold="5m",
            keep="15m",
        ),
        Alert(
            "ConstantInputs",
            "sum by (model, version) (increase(loopline_constant_rows_total[15m]))"
            ' / (sum by (model, version) (increase(loopline_signal_rows_total{signal="contrast"}[15m])) > 20) > 0.05',
            "{{ $labels.model }}: images of one colour arrive",
            "{{ $value | humanizePercentage }} of the images show nothing: a dead camera, a closed shutter, a broken decoder.",
            "warning",
            hold="5m",
            keep="15m",
        ),
        Alert(
            "NoTraffic",
            f"sum by (model) (increase({requests}[1h])) == 0",
            "{{ $labels.model }}: nobody asks",
            "There was no request for an hour.",
            "info",
            hold="5m",
        ),
        Alert(
            "MixedVersions",
            "count by (model) (count by (model, version) (loopline_model_info)) > 1",
            "{{ $labels.model }}: {{ $value }} versions serve side by side",
            "A rollout has been under way for 6 hours, or one server was forgotten.",
            "info",
            hold="6h",
        ),
        Alert(
            "StaleModel",
            f"time() - max by (model, version) (loopline_bundle_written_timestamp_seconds) > {STALE_DAYS} * 86400",
            "{{ $labels.model }}: the model is old",
            f"Version {{{{ $labels.version }}}} came to its server over {STALE_DAYS} days ago.",
            "info",
        ),
        Alert(
            "Skew",
            'sum by (model, version) (increase(loopline_sentinel_checks_total{result="different"}[10m])) > 0',
            "{{ $labels.model }}: it does not answer as it did in training",
            '{{ printf "%.0f" $value }} golden checks got another answer in 10 minutes: preprocessing, bundle or runtime differ.',
            "critical",
            keep="10m",
        ),
        Alert(
            "SentinelSilent",
            "max by (model) (loopline_model_info) unless on (model)"
            ' (sum by (model) (increase(loopline_sentinel_checks_total{result=~"same|different"}[10m])) > 0)',
            "{{ $labels.model }}: no golden input was checked",
            "The sentinel gets no answer from the model, or another version than its bundle's is served.",
            "warning",
            hold="5m",
        ),
        Alert(
            "RetrainingFailed",
            'sum by (model) (increase(loopline_retrain_runs_total{result="failed"}[1h])) > 0',
            "{{ $labels.model }}: a retraining broke down",
            "A run of the last hour failed: no candidate came out of it, and the model in service is still the one that drifts.",
            "warning",
            keep="1h",
        ),
    )
    return Group("loopline-service", "30s", tuple(recordings), alerts)


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
    import yaml

    head = "# Made by `loopline rules`; change src/loopline/monitoring/rules.py instead.\n"
    return head + str(yaml.safe_dump(prometheus(window, runbooks), sort_keys=False, width=135, allow_unicode=True))


def _alert(alert: Alert, runbooks: str) -> dict[str, Any]:
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
