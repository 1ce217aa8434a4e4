"""The handlers of inference requests, and what they share. `app` has the routes to them, `exchange` a request's way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from loopline.server import oip, payloads
from loopline.server.batcher import Batcher
from loopline.server.cache import Cache
from loopline.server.drift_counter import Watcher
from loopline.server.exchange import SHED, ItemExchange, TensorExchange, deadline
from loopline.server.jobs import Job
from loopline.server.journal_writer import Journal
from loopline.server.limits import Limits
from loopline.server.logs import log
from loopline.server.messages import Cancel, Headers, Refusal, Request, Respond, Response
from loopline.server.metrics import Metrics
from loopline.server.model import Decoder, Model, Tensors
from loopline.server.model_metrics import ModelMetrics
from loopline.server.tracing import Record

LARGE = 32 * 1024  # bytes of encoded images; larger requests are decoded in a separate queue
PROBE = b"x-loopline-probe"  # header of the sentinel's requests, which do not count as traffic
Handler = Callable[[Request, Respond], Cancel | None]


class Inference:
    """The handlers of all models. They share one queue."""

    def __init__(
        self,
        models: Sequence[Model],
        metrics: Metrics,
        *,
        slots: int,
        limits: Limits,
        refusal: Callable[[Refusal], Response],
        log_requests: bool = False,
        record: Record | None = None,
        journal: Journal | None = None,
    ) -> None:
        """refusal: makes the answer for a Refusal. record: records a request as a span. Needs a running event loop."""
        self.journal = journal
        self.metrics, self.limits, self.refusal = metrics, limits, refusal
        self.log_requests, self.record = log_requests, record
        self.cache = Cache(limits.cache_bytes) if limits.cache_bytes else None
        self.series = {model.name: ModelMetrics(metrics, model) for model in models}
        self.decoders = {model.name: Decoder(model) for model in models if model.spec.image}
        self.watcher = Watcher(models, metrics, rows_a_second=limits.signals, journal=journal)
        self.batcher = Batcher([*models, *self.decoders.values()], slots=slots, observe=self._observe)

    def close(self) -> None:
        """End the threads."""
        self.batcher.close()
        self.watcher.close()
        if self.journal:
            self.journal.close()

    def admit(self, model: Model, headers: Headers, arrived: float) -> None:
        """Raise Refusal if another row for `model` would be answered too late. Called before a request's body is read."""
        due = deadline(headers, arrived, self.limits.timeout_ms)
        self.batcher.budget.patience = due - arrived
        try:
            self.batcher.admit(model, 1, 0, due, time.monotonic())
        except Refusal as refusal:
            self.series[model.name].shed[SHED[refusal.status]].value += 1
            raise

    def count(self, model: Model | None, route: str, status: int) -> None:
        """Count an answer with a status other than 200."""
        key = (model.name, model.version) if model else ("", "")
        self.metrics.value("requests", *key, route, str(status)).value += 1

    def scrape(self) -> None:
        """Update the gauges."""
        for name, series in self.series.items():
            series.waiting.value = len(self.batcher.lines[name].jobs)
            intact = series.model.intact()
            if not intact and series.intact.value:
                log("error", "the bundle on disk has changed; the server keeps serving the loaded one", model=name)
            series.intact.value = intact
        self.metrics.value("cache_bytes").value = self.cache.bytes if self.cache else 0

    def infer(self, model: Model) -> Handler:
        """The handler of the Open Inference Protocol."""
        read = oip.RequestReader(model.inputs, model.outputs)

        def handle(request: Request, respond: Respond) -> Cancel:
            call = read(request.body, request.headers)
            arrays: Any = call.tensors
            rows = len(next(iter(arrays.values())))
            if any(len(array) != rows for array in arrays.values()):
                raise Refusal(400, "the inputs have different numbers of rows")
            self._check(model, arrays, rows)
            exchange = TensorExchange(self, model, request, respond, call)
            exchange.submit(Tensors(arrays), rows)
            return exchange.cancel

        return handle

    def _check(self, model: Model, arrays: Any, rows: int) -> None:
        if rows > self.limits.rows:
            raise Refusal(413, f"{rows} rows, at most {self.limits.rows} are accepted in one request")
        if model.spec.text is not None:
            most = model.spec.text.max_tokens
            if arrays["ids"].shape[1] > most:
                raise Refusal(413, f"{arrays['ids'].shape[1]} tokens, at most {most} are accepted")
            if arrays["ids"].min() < 0 or arrays["ids"].max() >= model.vocabulary:
                raise Refusal(
                    400, f"ids must be from 0 to {model.vocabulary - 1}: the bundle's tokenizer.json has no others"
                )

    def predict(self, model: Model) -> Handler:
        """The handler of the predict route, for people."""
        read = payloads.images if model.spec.image else payloads.texts

        def handle(request: Request, respond: Respond) -> Cancel:
            payload = read(request.body, request.headers)
            payload.probe = PROBE in request.headers
            exchange = ItemExchange(self, model, request, respond, payload)
            if len(request.body) <= LARGE or not model.spec.image:
                exchange.submit(payload, len(payload.items))
            else:
                exchange.decode()
            return exchange.cancel

        return handle

    def _observe(self, model: Any, batch: list[Job]) -> None:
        if not isinstance(model, Model):
            return
        series = self.series[model.name]
        rows = sum(job.rows for job in batch if not isinstance(job.result, Refusal))
        if not rows:
            return  # nothing could be prepared, so the model did not run
        series.executions.value += 1
        series.rows.value += rows
        series.batch.observe(rows)
        series.compute.observe(batch[0].finished - batch[0].started)
        for job in batch:
            series.queue.observe(job.started - job.enqueued)
