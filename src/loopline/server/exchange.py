"""One inference request and its answer: it is queued, run, answered, counted and logged. One object a request holds its state."""

from __future__ import annotations

import itertools
import os
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

import orjson

from loopline.server import oip
from loopline.server.batcher import Batcher
from loopline.server.cache import Cache, key
from loopline.server.jobs import Job, TooLate
from loopline.server.journal_writer import Journal
from loopline.server.limits import Limits
from loopline.server.logs import log
from loopline.server.messages import Headers, Refusal, Request, Respond, Response, number
from loopline.server.model import Decoder, Encoded, Model, Tensors
from loopline.server.model_metrics import ModelMetrics
from loopline.server.tracing import Record

MOST_TIMEOUT_MS = 600_000
MOST_ID = 128  # characters of a request's id
GONE = 499  # status in the metrics if the client left before its answer
SHED = {429: "queue", 503: "deadline"}  # status -> the metrics' reason
NOTEWORTHY = (400, 413, 415, 500)  # statuses caused by the input or the model
PRINTABLE = bytes(range(0x21, 0x7F))  # bytes that a request's id may have
_ids = itertools.count(int.from_bytes(os.urandom(6), "big") << 16)


def deadline(headers: Headers, now: float, default_ms: float) -> float:
    """The time to answer by, on the clock of `now`. default_ms: for a request that says nothing. Raises Refusal (400)."""
    timeout = headers.get(b"x-request-timeout-ms")
    if not timeout:
        return now + default_ms / 1000
    if not (milliseconds := number(timeout, MOST_TIMEOUT_MS)):
        raise Refusal(400, f"X-Request-Timeout-Ms must be a whole number from 1 to {MOST_TIMEOUT_MS}")
    return now + milliseconds / 1000


def request_id(headers: Headers) -> bytes:
    """The client's request id. A new id replaces an empty or invalid one, which a proxy may have written."""
    identity = headers.get(b"x-request-id")
    if identity and len(identity) <= MOST_ID and not identity.translate(None, PRINTABLE):
        return identity
    return b"%x" % next(_ids)


def broken(error: Exception) -> Refusal:
    """Log an error in the server's own code and return the Refusal (500) for it."""
    log("error", "internal error", error=repr(error), trace=traceback.format_exception(error)[-3:])
    return Refusal(500, "the server failed with an internal error; its log says more")


class Shared(Protocol):
    """What all exchanges share. refusal: makes the answer for a Refusal. record: records a request as a span."""

    batcher: Batcher
    cache: Cache | None
    decoders: dict[str, Decoder]
    journal: Journal | None
    limits: Limits
    log_requests: bool
    record: Record | None
    refusal: Callable[[Refusal], Response]
    series: dict[str, ModelMetrics]

    def count(self, model: Model | None, route: str, status: int) -> None:
        """Count an answer with a status other than 200."""


class Exchange:
    """A request on its way. Its methods are called in the event loop's thread."""

    __slots__ = (
        "cache_key",
        "headers",
        "job",
        "model",
        "payload",
        "request",
        "respond",
        "route",
        "rows",
        "series",
        "shared",
    )

    def __init__(self, shared: Shared, model: Model, request: Request, respond: Respond, route: str) -> None:
        """route: the metrics' label."""
        self.shared, self.model, self.request, self.respond, self.route = shared, model, request, respond, route
        self.series = shared.series[model.name]
        self.headers: Headers = {b"x-request-id": request_id(request.headers)}
        if trace := request.headers.get(b"traceparent"):
            self.headers[b"traceparent"] = trace
        self.job: Job | None = None
        self.cache_key: bytes | None = None
        self.payload: Any = None
        self.rows = 0

    def answer(self, results: Any) -> Response:
        """Make the answer from the model's results, with `headers`."""
        raise NotImplementedError

    def submit(self, payload: Any, rows: int) -> None:
        """Queue the payload, or answer from the cache. Raises Refusal if there is no time for it."""
        self.payload, self.rows, cache, series = payload, rows, self.shared.cache, self.series
        if cache and isinstance(payload, Tensors | Encoded):
            self.cache_key = key(self.model.name, payload)
            cached = cache.get(self.cache_key)
            (series.misses if cached is None else series.hits).value += 1
            if cached is not None:
                series.ok[self.route].value += 1
                self.respond(self.answer(cached))
                return
        job = Job(self.model, payload, rows, len(self.request.body), self._deadline(), self.finish)
        try:
            self.shared.batcher.submit(job)
        except Refusal as refusal:
            series.shed[SHED[refusal.status]].value += 1
            raise
        self.job = job
        series.in_flight.value += 1

    def _deadline(self) -> float:
        return deadline(self.request.headers, self.request.received, self.shared.limits.timeout_ms)

    def cancel(self) -> None:
        """The client has left."""
        if self.job:
            self.job.cancel()
            self.series.in_flight.value -= 1
            self.shared.count(self.model, self.route, GONE)

    def finish(self, job: Job) -> None:
        """Answer with the job's result, and count."""
        series, shared = self.series, self.shared
        series.in_flight.value -= 1
        self.job = None  # it refers back to this exchange
        try:
            results = self._results(job)
            response = self.answer(results)
            series.ok[self.route].value += 1
            if self.cache_key and shared.cache:
                shared.cache.put(self.cache_key, results)
        except Refusal as refusal:
            response = self.refuse(refusal)
        except Exception as error:
            response = self.refuse(broken(error))
        seconds = time.monotonic() - self.request.received
        series.seconds[self.route].observe(seconds)
        if shared.log_requests or shared.record:
            self._note(response.status, seconds)
        self.respond(response)

    def _note(self, status: int, seconds: float) -> None:
        """Log the request and record its span, as the server's options say."""
        model, route, rows, identity = self.model, self.route, self.rows, self.headers[b"x-request-id"].decode("ascii")
        if self.shared.log_requests:
            ms = round(seconds * 1e3, 3)
            log("info", "request", id=identity, model=model.name, route=route, status=status, rows=rows, ms=ms)
        if self.shared.record:
            facts = {"request.id": identity, "model.name": model.name, "model.version": model.version, "rows": rows}
            name = f"{route} {model.name}"
            self.shared.record(name=name, seconds=seconds, status=status, headers=self.headers, **facts)

    def _results(self, job: Job) -> Any:
        """The model's results. Raises the Refusal that tells the client about its item's error."""
        error = job.result
        if not isinstance(error, Exception):
            return error
        if isinstance(error, Refusal):
            raise error
        if isinstance(error, TooLate):
            self.series.shed["expired"].value += 1
            raise Refusal(503, "the deadline passed while the request waited", headers={b"retry-after": b"1"})
        self.series.failures.value += 1
        log("error", "inference failed", model=self.model.name, error=repr(error))
        raise Refusal(500, "the model failed on this input")

    def refuse(self, refusal: Refusal) -> Response:
        """The answer for a refusal. The journal keeps the input if the input or the model caused it, not the load."""
        journal, payload = self.shared.journal, self.payload
        source = payload if isinstance(payload, Encoded) else getattr(payload, "source", None)
        if journal and source and not source.probe and refusal.status in NOTEWORTHY:
            journal.refused(self.model, source.identity, source.items, refusal.status, refusal.message)
        refusal.headers.update(self.headers)
        refusal.about = self.model, self.route
        return self.shared.refusal(refusal)


class TensorExchange(Exchange):
    """An exchange of the Open Inference Protocol."""

    __slots__ = ("call",)

    def __init__(self, shared: Shared, model: Model, request: Request, respond: Respond, call: oip.Call) -> None:
        """call: the request as it was read."""
        super().__init__(shared, model, request, respond, "infer")
        self.call = call

    def answer(self, results: Any) -> Response:
        """See Exchange."""
        response = oip.answer(self.call, self.model.name, self.model.version, results, self.model.outputs)
        response.headers.update(self.headers)
        return response


class ItemExchange(Exchange):
    """An exchange of the predict route, for people."""

    __slots__ = ()

    def __init__(self, shared: Shared, model: Model, request: Request, respond: Respond, payload: Encoded) -> None:
        """payload: the items as they were read."""
        super().__init__(shared, model, request, respond, "probe" if payload.probe else "predict")
        self.payload = payload
        payload.identity = self.headers[b"x-request-id"].decode("ascii")

    def answer(self, results: Any) -> Response:
        """See Exchange."""
        identity = self.headers[b"x-request-id"].decode("ascii")
        body = {"model": self.model.name, "version": self.model.version, "id": identity, "predictions": results}
        return Response(body=(orjson.dumps(body),), headers=self.headers)

    def decode(self) -> None:
        """Queue the decoding of a large payload, then the inference. Raises Refusal if there is no time for it."""
        payload, size = self.payload, len(self.request.body)
        decoder = self.shared.decoders[self.model.name]
        job = Job(decoder, payload, len(payload.items), size, self._deadline(), self.decoded)
        self.shared.batcher.submit(job)
        self.job = job
        self.series.in_flight.value += 1

    def decoded(self, job: Job) -> None:
        """Queue what was decoded."""
        self.series.in_flight.value -= 1
        self.job = None
        try:
            self.submit(self._results(job), job.rows)
        except Refusal as refusal:
            self.respond(self.refuse(refusal))
