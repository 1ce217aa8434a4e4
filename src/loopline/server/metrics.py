"""The catalogue of metrics: every name, label and unit that a server exports.

The event loop's thread counts in plain numbers, 0.3 us an observation. prometheus_client formats them for a scrape.
Rules, dashboards and documentation are tested against `CATALOGUE`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

PREFIX = "loopline_"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


@dataclass(frozen=True)
class Metric:
    """A family of metrics. Names end in the base unit; counters get `_total` when exported."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


CATALOGUE = {
    metric.name: metric
    for metric in (
        Metric("requests", "counter", "Answers by HTTP status.", ("model", "version", "route", "code")),
        Metric(
            "request_seconds",
            "histogram",
            "Time from a request's head to its answer.",
            ("model", "version", "route"),
            SECONDS,
        ),
        Metric("inference_rows", "counter", "Samples that went through a model.", ("model", "version")),
        Metric("executions", "counter", "Batches that a model ran.", ("model", "version")),
        Metric("execution_failures", "counter", "Items that a model failed on.", ("model", "version")),
        Metric("queue_seconds", "histogram", "Time that an item waits in the queue.", ("model", "version"), SECONDS),
        Metric(
            "compute_seconds", "histogram", "Time of a batch, including preparation.", ("model", "version"), SECONDS
        ),
        Metric("batch_rows", "histogram", "Samples in a batch.", ("model", "version"), ROWS),
        Metric("shed", "counter", "Requests refused because of load.", ("model", "version", "reason")),
        Metric("cache_hits", "counter", "Answers taken from the cache.", ("model", "version")),
        Metric("cache_misses", "counter", "Answers that the cache did not have.", ("model", "version")),
        Metric("cache_bytes", "gauge", "Size of the cache of answers."),
        Metric("queue_items", "gauge", "Items that wait in the queue.", ("model", "version")),
        Metric("in_flight", "gauge", "Requests accepted and not yet answered.", ("model", "version")),
        Metric("connections", "gauge", "Open connections."),
        Metric("ready", "gauge", "1 while the server accepts requests.", ()),
        Metric("best_batch_rows", "gauge", "The batch size that warm-up found best.", ("model", "version")),
        Metric(
            "warm_up_batch_seconds", "gauge", "Time of a batch when warm-up measured it.", ("model", "version", "rows")
        ),
        Metric(
            "warm_up_stable",
            "gauge",
            "1 if all of warm-up's last rounds found the same best batch.",
            ("model", "version"),
        ),
        Metric(
            "model_info",
            "gauge",
            "1; the labels name the bundle.",
            ("model", "version", "bundle", "precision", "provider"),
        ),
        Metric("bundle_written_timestamp_seconds", "gauge", "When the bundle was written here.", ("model", "version")),
        Metric("bundle_intact", "gauge", "1 while the bundle on disk is the loaded one.", ("model", "version")),
        # Drift: see docs/drift.md. The gauges export the bundle's reference, which the rules compare the counters with.
        Metric("signal_rows", "counter", "Samples by bin of a drift signal.", ("model", "version", "signal", "bin")),
        Metric("constant_rows", "counter", "Samples that are images of one colour.", ("model", "version")),
        Metric("reference_share", "gauge", "Share of a bin in the reference.", ("model", "version", "signal", "bin")),
        Metric("signal_bin_value", "gauge", "Middle of a bin.", ("model", "version", "signal", "bin")),
        Metric("reference_samples", "gauge", "Samples in the reference.", ("model", "version", "signal")),
        Metric("signal_mean", "gauge", "Mean of the evidence without drift.", ("model", "version", "signal")),
        Metric(
            "signal_sd",
            "gauge",
            "Standard deviation of the evidence without drift.",
            ("model", "version", "signal"),
        ),
        Metric("signal_noise", "gauge", "Shift without drift, over sqrt(1/n + 1/m).", ("model", "version", "signal")),
        Metric("drift_threshold", "gauge", "Factors of the threshold's terms.", ("model", "version", "term")),
        Metric("drift_least_samples", "gauge", "Fewest samples in a window for a verdict.", ("model", "version")),
        Metric(
            "quality_weight",
            "gauge",
            "Quality of a sample in a bin, by method of estimation.",
            ("model", "version", "signal", "bin", "estimate"),
        ),
        Metric("quality_reference", "gauge", "Quality on the reference.", ("model", "version", "metric")),
        Metric("quality_max_loss", "gauge", "Least loss of quality that counts as harm.", ("model", "version")),
        # The journal: see docs/journal.md.
        Metric("journal_rows", "counter", "Lines written, by reason to keep them.", ("model", "version", "reason")),
        Metric("journal_lost", "counter", "Lines that were not written: too many waited, or the disk failed."),
        Metric("journal_dropped_segments", "counter", "Segments removed because they were not fetched."),
        Metric("feedback", "counter", "Labels that came back.", ("model", "version", "code")),
    )
}


class Histogram:
    """Counts by upper bound. The last count is of values above all bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """bounds: upper bounds in rising order."""
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Value:
    """A counter or a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        """Start at 0."""
        self.value = 0.0


class Metrics:
    """The values of one server's metrics. Not safe for several threads."""

    def __init__(self) -> None:
        """Start without any series."""
        self.series: dict[str, dict[tuple[str, ...], Value | Histogram]] = {name: {} for name in CATALOGUE}

    def value(self, name: str, *labels: str) -> Value:
        """The counter or gauge with these labels, in the catalogue's order. Keep it, because the look-up is slow."""
        assert CATALOGUE[name].kind != "histogram" and len(labels) == len(CATALOGUE[name].labels), name
        series = self.series[name].setdefault(labels, Value())
        assert isinstance(series, Value)
        return series

    def histogram(self, name: str, *labels: str) -> Histogram:
        """The histogram with these labels."""
        assert len(labels) == len(CATALOGUE[name].labels), name
        series = self.series[name].setdefault(labels, Histogram(CATALOGUE[name].buckets))
        assert isinstance(series, Histogram)
        return series

    def families(self) -> Iterator[object]:
        """Yield the families as prometheus_client's objects."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for metric in CATALOGUE.values():
            kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
            family = kinds[metric.kind](PREFIX + metric.name, metric.help, labels=metric.labels)
            for labels, series in self.series[metric.name].items():
                if isinstance(series, Histogram):
                    family.add_metric(labels, list(_cumulative(series)), series.total)
                else:
                    family.add_metric(labels, series.value)
            yield family

    def exposition(self) -> tuple[bytes, bytes]:
        """The text for a scrape, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(self))  # type: ignore[arg-type]
        ProcessCollector(registry=registry)
        return generate_latest(registry), CONTENT_TYPE_LATEST.encode("ascii")


class _Collector:
    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def collect(self) -> Iterable[object]:
        return self.metrics.families()


def _cumulative(histogram: Histogram) -> Iterator[tuple[str, float]]:
    count = 0
    for bound, increase in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        count += increase
        yield ("+Inf" if bound == float("inf") else str(bound)), float(count)
