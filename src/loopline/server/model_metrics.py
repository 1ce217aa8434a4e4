"""The metrics of one served model, looked up once, so that counting an answer needs no look-up by name."""

from __future__ import annotations

from loopline.server.metrics import Metrics
from loopline.server.model import Model

ROUTES = ("infer", "predict", "probe")  # values of the metrics' `route` label


class ModelMetrics:
    """The metrics of one model."""

    def __init__(self, metrics: Metrics, model: Model) -> None:
        """Look up each series once, and set the gauges that never change."""
        key = (model.name, model.version)
        self.metrics, self.key = metrics, key
        self.rows, self.executions = metrics.value("inference_rows", *key), metrics.value("executions", *key)
        self.failures = metrics.value("execution_failures", *key)
        self.queue, self.compute = metrics.histogram("queue_seconds", *key), metrics.histogram("compute_seconds", *key)
        self.batch = metrics.histogram("batch_rows", *key)
        self.waiting, self.in_flight = metrics.value("queue_items", *key), metrics.value("in_flight", *key)
        self.model, self.intact = model, metrics.value("bundle_intact", *key)
        self.intact.value = 1
        self.shed = {reason: metrics.value("shed", *key, reason) for reason in ("queue", "deadline", "expired")}
        self.ok = {route: metrics.value("requests", *key, route, "200") for route in ROUTES}
        self.seconds = {route: metrics.histogram("request_seconds", *key, route) for route in ROUTES}
        for route in ROUTES:
            # Exported from the start, because Prometheus sees no increase in the first value of a series.
            for code in ("429", "500", "503"):
                metrics.value("requests", *key, route, code)
        self.hits, self.misses = metrics.value("cache_hits", *key), metrics.value("cache_misses", *key)
        metrics.value("best_batch_rows", *key).value = model.best_rows
        if model.profile:
            metrics.value("warm_up_stable", *key).value = model.profile.stable
            for rows, seconds in model.profile.seconds.items():
                metrics.value("warm_up_batch_seconds", *key, str(rows)).value = seconds
        precision = model.bundle.manifest.quantization
        metrics.value("model_info", *key, model.bundle.version, precision, model.provider).value = 1
        metrics.value("bundle_written_timestamp_seconds", *key).value = model.bundle.model.stat().st_mtime
