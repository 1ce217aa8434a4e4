"""Rules about a model: the statistic of `drift.statistic`, the estimated and the labelled loss, and the alerts that follow."""

from __future__ import annotations

from loopline.drift.harm import DOUBT, MIXTURE, SURE
from loopline.drift.statistic import WEIGHTS
from loopline.drift.thresholds import EVALUATIONS
from loopline.observability.rules.parts import (
    AlertRule,
    Recording,
    RuleGroup,
    duration,
    of_model,
    of_signal,
    seconds,
    served,
)

SELDOM = 120  # seconds: Prometheus forgets a recorded value after five minutes
ALPHA = 0.05  # chance that a confidence sequence ever leaves the true quality out
N, N_LABELS = "loopline:signal_samples:window", "loopline:labelled_samples"
M, BEST = of_signal("loopline_reference_samples"), of_model("loopline_quality_reference")
BINS = "max by (model, version, signal, bin)"
LABELS_FOR = 6  # windows whose labels are looked at together: they come late


def _value(of: str, form: str) -> str:
    """Template: about the mean of the signal in the window or in the reference."""
    series = f"loopline:signal_value:{of}{{model=%q,version=%q,signal=%q}}"
    return (
        f'{{{{ range query (printf "{series}" .Labels.model .Labels.version $signal) }}}}'
        f'{{{{ printf "{form}" .Value }}}}{{{{ end }}}}'
    )


def group(window: str) -> RuleGroup:
    """window: of traffic that is held against the reference."""
    recordings = _statistic(window) + _quality() + _labelled(window)
    interval = duration(min(seconds(window) / EVALUATIONS, SELDOM))
    return RuleGroup("loopline-drift", interval, recordings, _alerts(window))


def _statistic(window: str) -> tuple[Recording, ...]:
    standard = f"(loopline:signal_evidence - {of_signal('loopline_signal_mean')}) / {of_signal('loopline_signal_sd')}"

    def term(name: str) -> str:
        series = f'loopline_drift_threshold{{term="{name}"}}'
        return f"on (model, version) group_left () {of_model(series)}"

    threshold = f"{N} ^ 0 * {term('constant')} + 1 / {N} * {term('small')} + {N} / ({N} + {M}) * {term('large')}"
    enough = f"{N} >= on (model, version) group_left () {of_model('loopline_drift_least_samples')}"
    values = f"{BINS} (loopline_signal_bin_value)"
    known = 'loopline:signal_share{bin!="nan"}'
    before = "loopline:signal_share:reference"
    ours = "on (model, version, signal) group_left () loopline:signal_weight"
    return (
        Recording(
            "loopline:signal_rows:window",
            served(f"sum by (model, version, signal, bin) (increase(loopline_signal_rows_total[{window}]))"),
        ),
        Recording(N, "sum by (model, version, signal) (loopline:signal_rows:window)"),
        Recording(
            "loopline:signal_share",
            f"loopline:signal_rows:window / on (model, version, signal) group_left () ({N} > 0)",
        ),
        Recording(before, f"{BINS} (loopline_reference_share)"),  # once: it is every replica's every bin
        Recording(
            "loopline:signal_shift", f"sum by (model, version, signal) (abs(loopline:signal_share - {before})) / 2"
        ),
        Recording("loopline:signal_weight", f"clamp({N} / ({N} + {M}), {WEIGHTS[0]}, {WEIGHTS[1]})"),
        Recording(
            "loopline:signal_evidence",
            f"(sum by (model, version, signal) ((loopline:signal_share - {before}) ^ 2"
            f" / ((loopline:signal_share * {ours}"
            f" + {before} * on (model, version, signal) group_left () (1 - loopline:signal_weight)) > 0))"
            f" / (1 / {N} + 1 / {M})) ^ (1 / 3)",
        ),
        Recording(
            "loopline:signal_score",
            f"({standard}) / ({threshold}) and on (model, version, signal) ({enough})",
        ),
        Recording("loopline:drift_score", "max by (model, version) (loopline:signal_score)"),
        Recording("loopline:drift_samples", f"max by (model, version) ({N})"),
        Recording(
            "loopline:signal_value:window",
            f"sum by (model, version, signal) ({known} * {values}) / (sum by (model, version, signal) ({known}) > 0)",
        ),
        Recording(
            "loopline:signal_value:reference",
            f"sum by (model, version, signal) ({before} * {values})"
            f' / sum by (model, version, signal) ({before}{{bin!="nan",signal!="predicted_class"}})',
        ),
    )


def _quality() -> tuple[Recording, ...]:
    """Without labels: see `drift.harm`."""
    classes, others = 'signal="predicted_class"', 'signal!="predicted_class"'
    return (
        Recording(
            "loopline:quality_estimated",
            "sum by (model, version, estimate) (max by (model, version, signal, bin, estimate) (loopline_quality_weight)"
            " * on (model, version, signal, bin) group_left () loopline:signal_share)",
        ),
        Recording(
            "loopline:signal_excess",
            f"sqrt(clamp_min(loopline:signal_shift ^ 2 - {of_signal('loopline_signal_noise')} ^ 2 * (1 / {N} + 1 / {M}), 0))",
        ),
        Recording("loopline:quality_loss:confidence", f"{BEST} - avg by (model, version) (loopline:quality_estimated)"),
        Recording(
            "loopline:quality_loss:classes",
            f"({of_model(f'loopline:signal_excess{{{classes}}}')} < {of_model(f'loopline:signal_excess{{{others}}}')})"
            f" and ({of_model(f'loopline:signal_score{{{classes}}}')} > {SURE})",
        ),
        Recording(
            "loopline:quality_loss",
            "loopline:quality_loss:classes > loopline:quality_loss:confidence or loopline:quality_loss:confidence",
        ),
        Recording(
            "loopline:quality_limit",
            f"{of_model('loopline_quality_max_loss')} + {DOUBT} * sqrt({BEST} * (1 - {BEST}) / loopline:drift_samples)",
        ),
    )


def _labelled(window: str) -> tuple[Recording, ...]:
    """With labels: what the journal joined, and the radius of `drift.harm.confidence_sequence`."""
    labelled = duration(LABELS_FOR * seconds(window))
    upper = f"({N_LABELS} / 4 + {MIXTURE / 4:g})"
    return (
        Recording(
            N_LABELS,
            served(f"sum by (model, version) (increase(loopline_labelled_rows_total[{labelled}])) > 0"),
        ),
        Recording(
            "loopline:quality_labelled",
            f"sum by (model, version) (increase(loopline_labelled_quality_total[{labelled}])) / {N_LABELS}",
        ),
        Recording(
            "loopline:quality_labelled:radius",
            f"sqrt({upper} * ln({upper} / {MIXTURE / 4 * ALPHA**2:g})) / {N_LABELS}",
        ),
    )


def _alerts(window: str) -> tuple[AlertRule, ...]:
    harmful = "loopline:quality_loss > loopline:quality_limit"
    drifted = "loopline:drift_score > 1"
    harm = served(f"({drifted}) and on (model, version) ({harmful})")
    one = "{model=%q,version=%q}"
    details = (
        'Version {{ $labels.version }}, score {{ printf "%.2f" $value }} (alarm over 1), estimated loss '
        f'{{{{ range query (printf "100 * loopline:quality_loss{one}" .Labels.model .Labels.version) }}}}'
        '{{ printf "%.1f" .Value }}{{ end }} points. Moved most: '
        f'{{{{ range $place, $one := query (printf "topk(3, loopline:signal_score{one} > 0.5)" .Labels.model .Labels.version) }}}}'
        '{{ if $place }}, {{ end }}{{ $signal := .Labels.signal }}{{ $signal }} (score {{ printf "%.1f" .Value }}'
        f"{_value('reference', ', mean %.4g')}{_value('window', ' to %.4g')}){{{{ end }}}}."
    )
    keep = duration(seconds(window) / 4)
    return (
        AlertRule(
            "DriftNotice",
            served(f"({drifted}) unless on (model, version) ({harmful})"),
            "{{ $labels.model }}: traffic differs from the reference; no harm is estimated",
            details,
            "notice",
            keep=keep,
        ),
        AlertRule(
            "DriftWarning",
            harm,
            "{{ $labels.model }}: traffic differs from the reference and the model is worse on it, by its own confidence",
            details,
            "warning",
            keep=keep,
        ),
        AlertRule(
            "RetrainCandidate",
            harm,
            "{{ $labels.model }}: harmful drift that lasts; a retraining should be considered",
            details,
            "retrain",
            hold=duration(2 * seconds(window)),
            keep=keep,
        ),
        AlertRule(
            "LabelledHarm",
            served(
                f"{BEST} - (loopline:quality_labelled + loopline:quality_labelled:radius)"
                f" > {of_model('loopline_quality_max_loss')}"
            ),
            "{{ $labels.model }}: labels show that the model has become worse",
            "Version {{ $labels.version }} is at least {{ $value | humanizePercentage }} worse on what was labelled than it was"
            f" on its reference; over {duration(LABELS_FOR * seconds(window))}.",
            "retrain",
            keep=keep,
        ),
        AlertRule(
            "DriftNoVerdict",
            served(f"loopline:drift_samples > 0 < on (model, version) {of_model('loopline_drift_least_samples')}"),
            "{{ $labels.model }}: too little traffic to tell drift",
            'Version {{ $labels.version }} saw {{ printf "%.0f" $value }} samples in the window.',
            "info",
            hold=duration(seconds(window) * 6),
        ),
    )
