"""The handlers of inference requests: they read, queue, answer, count and log a request. `app` has the routes to them."""

from __future__ import annotations

import itertools
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from loopline.lib.options import option
from loopline.server import oip, payloads
from loopline.server.batcher import Batcher, Job, TooLate
from loopline.server.cache import Cache, key
from loopline.server.drift_counter import ROWS_A_SECOND, Watcher
from loopline.server.journal_writer import Journal
from loopline.server.logs import log
from loopline.server.messages import Cancel, Headers, Refusal, Request, Respond, Response, number
from loopline.server.metrics import Metrics
from loopline.server.model import Decoder, Encoded, Model, Tensors
from loopline.server.model_metrics import ModelMetrics
from loopline.server.tracing import Record

LARGE = 32 * 1024  # bytes of encoded images; larger requests are decoded in a separate queue
MOST_TIMEOUT_MS = 600_000
MOST_ID = 128  # characters of a request's id
GONE = 499  # status in the metrics if the client left before its answer
PROBE = b"x-loopline-probe"  # header of the sentinel's requests, which do not count as traffic
SHED = {429: "queue", 503: "deadline"}  # status -> the metrics' reason
NOTEWORTHY = (400, 413, 415, 500)  # statuses caused by the input or the model
PRINTABLE = frozenset(range(0x21, 0x7F))  # bytes that a request's id may have
Handler = Callable[[Request, Respond], Cancel | None]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the server. body_bytes, rows: most in one request. cache_bytes: size of the cache of answers; 0 for no cache."""

    body_bytes: int = 16 * 1024 * 1024
    rows: int = 1024
    timeout_ms: int = option(1000, "milliseconds to answer a request that sends no X-Request-Timeout-Ms")
    cache_bytes: int = 0
    signals: int = option(
        ROWS_A_SECOND, "number of samples a second and model whose drift signals are counted; 0: none"
    )


def broken(error: Exception) -> Refusal:
    """Log an error in the server's own code and return the Refusal (500) for it."""
    log("error", "internal error", error=repr(error), trace=traceback.format_exception(error)[-3:])
    return Refusal(500, "the server failed with an internal error; its log says more")


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
        self._ids = itertools.count(int.from_bytes(os.urandom(6), "big") << 16)

    def close(self) -> None:
        """End the threads."""
        self.batcher.close()
        self.watcher.close()
        if self.journal:
            self.journal.close()

    def admit(self, model: Model, headers: Headers) -> None:
        """Raise Refusal if another row for `model` would be answered too late. Called before a request's body is read."""
        now = time.monotonic()
        deadline = self._deadline(headers, now)
        try:
            self.batcher.admit(model, 1, 0, deadline, now)
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

    def _deadline(self, headers: Headers, now: float) -> float:
        """The time to answer by, on the clock of `now`. Raises Refusal (400)."""
        timeout = headers.get(b"x-request-timeout-ms")
        if not timeout:
            return now + self.limits.timeout_ms / 1000
        if not (milliseconds := number(timeout, MOST_TIMEOUT_MS)):
            raise Refusal(400, f"X-Request-Timeout-Ms must be a whole number from 1 to {MOST_TIMEOUT_MS}")
        return now + milliseconds / 1000

    def _id(self, headers: Headers) -> bytes:
        """The client's request id. A new id replaces an empty or invalid one, which a proxy may have written."""
        identity = headers.get(b"x-request-id")
        if identity and len(identity) <= MOST_ID and PRINTABLE.issuperset(identity):
            return identity
        return b"%x" % next(self._ids)

    def infer(self, model: Model) -> Handler:
        """The handler of the Open Inference Protocol."""
        outputs, name, version = model.outputs, model.name, model.version
        read = oip.RequestReader(model.inputs, model.outputs)

        def handle(request: Request, respond: Respond) -> Cancel:
            call = read(request.body, request.headers)
            arrays: Any = call.tensors
            rows = len(next(iter(arrays.values())))
            if any(len(array) != rows for array in arrays.values()):
                raise Refusal(400, "the inputs have different numbers of rows")
            self._check(model, arrays, rows)

            def done(results: Any, headers: Headers) -> Response:
                response = oip.answer(call, name, version, results, outputs)
                response.headers.update(headers)
                return response

            return self._submit(model, Tensors(arrays), rows, len(request.body), request, respond, "infer", done)

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
            route = "probe" if payload.probe else "predict"
            identity = self._id(request.headers)
            request.headers[b"x-request-id"] = identity
            payload.identity = identity.decode("ascii")

            def done(answers: Any, headers: Headers) -> Response:
                body = {
                    "model": model.name,
                    "version": model.version,
                    "id": payload.identity,
                    "predictions": answers,
                }
                return Response(body=(orjson.dumps(body),), headers=headers)

            rows, size = len(payload.items), len(request.body)
            if size <= LARGE or not model.spec.image:
                return self._submit(model, payload, rows, size, request, respond, route, done)
            return self._decode_first(model, payload, rows, size, request, respond, route, done)

        return handle

    def _decode_first(
        self,
        model: Model,
        payload: Encoded,
        rows: int,
        size: int,
        request: Request,
        respond: Respond,
        route: str,
        done: Any,
    ) -> Cancel:
        """Queue the decoding of a large payload, then the inference."""
        deadline = self._deadline(request.headers, request.received)
        current: Cancel

        def decoded(job: Job) -> None:
            nonlocal current
            try:
                if isinstance(job.result, Exception):
                    self._raise(model, job.result)
                current = self._submit(model, job.result, rows, size, request, respond, route, done)
            except Refusal as refusal:
                self._keep_refused(model, payload, refusal)
                respond(self._refused(model, route, refusal))

        job = Job(self.decoders[model.name], payload, rows, size, deadline, decoded)
        self.batcher.submit(job)
        current = job.cancel
        return lambda: current()  # noqa: PLW0108 - `current` changes

    def _submit(
        self,
        model: Model,
        payload: Any,
        rows: int,
        size: int,
        request: Request,
        respond: Respond,
        route: str,
        done: Callable[[Any, Headers], Response],
    ) -> Cancel:
        """Queue the payload and answer when it is done. done: makes the answer from the results. Returns how to cancel."""
        headers = request.headers
        own: Headers = {b"x-request-id": self._id(headers)}
        if trace := headers.get(b"traceparent"):
            own[b"traceparent"] = trace
        series, received = self.series[model.name], request.received

        cache_key = key(model.name, payload) if self.cache and isinstance(payload, Tensors | Encoded) else None
        if self.cache and cache_key:
            cached = self.cache.get(cache_key)
            (series.misses if cached is None else series.hits).value += 1
            if cached is not None:
                series.ok[route].value += 1
                respond(done(cached, own))
                return lambda: None

        def finish(job: Job) -> None:
            series.in_flight.value -= 1
            result = job.result
            try:
                if isinstance(result, Exception):
                    self._raise(model, result)
                response = done(result, own)
                series.ok[route].value += 1
                if self.cache and cache_key:
                    self.cache.put(cache_key, result)
            except Refusal as refusal:
                self._keep_refused(model, payload, refusal)
                refusal.headers.update(own)
                response = self._refused(model, route, refusal)
            except Exception as error:
                response = self._refused(model, route, broken(error))
            seconds = time.monotonic() - received
            series.seconds[route].observe(seconds)
            if self.log_requests or self.record:
                self._note(model, route, response.status, rows, seconds, own)
            respond(response)

        job = Job(model, payload, rows, size, self._deadline(headers, received), finish)
        try:
            self.batcher.submit(job)
        except Refusal as refusal:
            series.shed[SHED[refusal.status]].value += 1
            raise
        series.in_flight.value += 1

        def cancel() -> None:
            job.cancel()
            series.in_flight.value -= 1
            self.count(model, route, GONE)

        return cancel

    def _raise(self, model: Model, error: Exception) -> None:
        """Raise the Refusal that tells the client about its item's error."""
        if isinstance(error, Refusal):
            raise error
        if isinstance(error, TooLate):
            self.series[model.name].shed["expired"].value += 1
            raise Refusal(503, "the deadline passed while the request waited", headers={b"retry-after": b"1"})
        self.series[model.name].failures.value += 1
        log("error", "inference failed", model=model.name, error=repr(error))
        raise Refusal(500, "the model failed on this input")

    def _refused(self, model: Model, route: str, refusal: Refusal) -> Response:
        refusal.about = model, route
        return self.refusal(refusal)

    def _keep_refused(self, model: Model, payload: Any, refusal: Refusal) -> None:
        """Write a refused input to the journal if the input or the model caused the refusal, not the load."""
        source = payload if isinstance(payload, Encoded) else getattr(payload, "source", None)
        if self.journal and source and not source.probe and refusal.status in NOTEWORTHY:
            self.journal.refused(model, source.identity, source.items, refusal.status, refusal.message)

    def _note(self, model: Model, route: str, status: int, rows: int, seconds: float, headers: Headers) -> None:
        identity = headers[b"x-request-id"].decode("ascii")
        if self.log_requests:
            ms = round(seconds * 1e3, 3)
            log("info", "request", id=identity, model=model.name, route=route, status=status, rows=rows, ms=ms)
        if self.record:
            self.record(
                name=f"{route} {model.name}",
                seconds=seconds,
                status=status,
                headers=headers,
                **{"request.id": identity, "model.name": model.name, "model.version": model.version, "rows": rows},
            )

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
