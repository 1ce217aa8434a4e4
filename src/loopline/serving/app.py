"""Routes: the Open Inference Protocol v2, the human route, and what operators ask for. See docs/serving.md.

Every route of a loaded model is in one table, so finding it is a look-up, and an unwelcome request is refused before its
body is read.
"""

from __future__ import annotations

import hmac
import itertools
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from loopline import __version__
from loopline.serving import intake, oip, openapi, pages
from loopline.serving.batcher import Batcher, Job, TooLate
from loopline.serving.cache import Cache, key
from loopline.serving.http import Cancel, Headers, Refusal, Request, Respond, Response, decompress
from loopline.serving.logs import log
from loopline.serving.metrics import Metrics
from loopline.serving.model import Decoder, Encoded, Model, Tensors
from loopline.serving.tracing import Record

LARGE = 32 * 1024  # bytes of encoded images; more are decoded in a line of their own
MOST_TIMEOUT_MS = 600_000
GONE = 499  # in the metrics: the client left before its answer
PRINTABLE = frozenset(range(0x21, 0x7F))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what a client may ask. timeout_ms: of a request that names none. rows: of one request. cache_bytes: 0 for no cache."""

    body_bytes: int = 16 * 1024 * 1024
    rows: int = 1024
    timeout_ms: int = 1000
    cache_bytes: int = 0


Handler = Callable[[Request, Respond], Cancel | None]


class Route(NamedTuple):
    """What answers, which model it is of, and the most bytes of its body."""

    handle: Handler
    limit: int = 0
    model: Model | None = None
    name: str = "other"  # in the metrics
    open: bool = False  # without a token


class _about:  # noqa: N801 - it reads as a statement
    """Inside, a refusal is about this route, and any other error is a mistake of ours: 500, and a line in the log."""

    __slots__ = ("route",)

    def __init__(self, route: Route) -> None:
        self.route = route

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            return
        refusal = error if isinstance(error, Refusal) else _broken(error) if isinstance(error, Exception) else None
        if refusal is not None:
            refusal.about = self.route.model, self.route.name
            raise refusal from None


def _broken(error: Exception) -> Refusal:
    log("error", "a mistake of the server", error=repr(error), trace=traceback.format_exception(error)[-3:])
    return Refusal(500, "the server made a mistake; its log says more")


class Series:
    """The metrics of one model, looked up once."""

    def __init__(self, metrics: Metrics, model: Model) -> None:
        """Also sets what never changes."""
        key = (model.name, model.version)
        self.metrics, self.key = metrics, key
        self.rows, self.executions = metrics.value("inference_rows", *key), metrics.value("executions", *key)
        self.failures = metrics.value("execution_failures", *key)
        self.queue, self.compute = metrics.histogram("queue_seconds", *key), metrics.histogram("compute_seconds", *key)
        self.batch = metrics.histogram("batch_rows", *key)
        self.waiting, self.in_flight = metrics.value("queue_items", *key), metrics.value("in_flight", *key)
        self.shed = {reason: metrics.value("shed", *key, reason) for reason in ("queue", "deadline", "expired")}
        self.ok = {route: metrics.value("requests", *key, route, "200") for route in ("infer", "predict")}
        self.seconds = {route: metrics.histogram("request_seconds", *key, route) for route in ("infer", "predict")}
        self.hits, self.misses = metrics.value("cache_hits", *key), metrics.value("cache_misses", *key)
        metrics.value("best_batch_rows", *key).value = model.best_rows
        precision = model.bundle.manifest.quantization
        metrics.value("model_info", *key, model.bundle.version, precision, model.provider).value = 1


class App:
    """Answers requests with the models it was given. See `http.Application`."""

    def __init__(
        self,
        models: Sequence[Model],
        *,
        slots: int,
        limits: Limits | None = None,
        token: str | None = None,
        demo: bool = True,
        log_requests: bool = False,
        record: Record | None = None,
    ) -> None:
        """token: what a client must send as its bearer token; demo: see `pages`. To be made in a running event loop."""
        self.log_requests, self.record = log_requests, record
        self.models = {model.name: model for model in models}
        self.limits, self.token = limits or Limits(), token.encode() if token else None
        self.metrics = Metrics()
        self.cache = Cache(self.limits.cache_bytes) if self.limits.cache_bytes else None
        self.series = {model.name: Series(self.metrics, model) for model in models}
        self.decoders = {model.name: Decoder(model) for model in models if model.spec.image}
        self.batcher = Batcher([*models, *self.decoders.values()], slots=slots, observe=self._observe)
        self.ready = False
        self._ids = itertools.count(int.from_bytes(os.urandom(6), "big") << 16)
        self.routes = self._routes(demo=demo)

    def _routes(self, *, demo: bool) -> dict[str, dict[str, Route]]:
        """Path -> method -> route."""
        live = Route(lambda _, respond: respond(Response()), open=True)
        table: dict[str, dict[str, Route]] = {
            "/v2": {"GET": Route(self._server)},
            "/v2/health/live": {"GET": live},
            "/v2/health/ready": {"GET": Route(self._ready, open=True)},
            "/v2/repository/index": {"POST": Route(self._index, 4096)},
            "/metrics": {"GET": Route(self._metrics)},
        }
        for model in self.models.values():
            for base in (f"/v2/models/{model.name}", f"/v2/models/{model.name}/versions/{model.version}"):
                table[base] = {"GET": Route(self._metadata(model))}
                table[f"{base}/ready"] = {"GET": Route(self._ready)}
                table[f"{base}/infer"] = {"POST": Route(self._infer(model), self.limits.body_bytes, model, "infer")}
            table[f"/predict/{model.name}"] = {
                "POST": Route(self._predict(model), self.limits.body_bytes, model, "predict")
            }
        document = orjson.dumps(openapi.document(list(self.models.values()), token=self.token is not None))
        for path, page in pages.pages(list(self.models.values()), document, demo=demo).items():
            table[path] = {"GET": Route(page.answer, open=page.open)}
        for methods in table.values():
            if "GET" in methods:
                methods["HEAD"] = methods["GET"]
        return table

    # What `http` calls

    def _route(self, method: str, path: str) -> Route:
        methods = self.routes.get(path) or self.routes.get(path.rstrip("/") or "/")
        if methods is None:
            raise Refusal(404, f"nothing is at {path[:200]}; /v2/repository/index lists the models")
        if method not in methods:
            raise Refusal(405, f"{path} answers {', '.join(methods)}", headers={b"allow": ", ".join(methods).encode()})
        return methods[method]

    def admit(self, method: str, path: str, headers: Headers) -> int:
        """See `http.Application`."""
        route = self._route(method, path)
        with _about(route):
            if self.token and not route.open:
                given = headers.get(b"authorization", b"")
                if not hmac.compare_digest(given, b"Bearer " + self.token):
                    raise Refusal(401, "a bearer token is wanted", headers={b"www-authenticate": b"Bearer"})
            if route.model is not None:
                now = time.monotonic()
                self._admit(route.model, 1, 0, self._deadline(headers, now), now)
        return route.limit

    def _admit(self, model: Model, rows: int, size: int, deadline: float, now: float) -> None:
        try:
            self.batcher.admit(model, rows, size, deadline, now)
        except Refusal as refusal:
            self.series[model.name].shed["queue" if refusal.status == 429 else "deadline"].value += 1
            raise

    def answer(self, request: Request, respond: Respond) -> Cancel | None:
        """See `http.Application`."""
        route = self._route(request.method, request.path)
        with _about(route):
            if (encoding := request.headers.get(b"content-encoding")) and encoding.lower() != b"identity":
                request.body = decompress(request.body, encoding.lower(), self.limits.body_bytes)
            return route.handle(request, respond)

    def refusal(self, refusal: Refusal) -> Response:
        """See `http.Application`. Every refusal comes by here, and is counted."""
        model, route = refusal.about or (None, "other")
        self._count(model, route, refusal.status)
        body = orjson.dumps({"error": refusal.message})
        return Response(refusal.status, (body,), headers=refusal.headers, close=refusal.close)

    # Models

    def _deadline(self, headers: Headers, now: float) -> float:
        given = headers.get(b"x-request-timeout-ms")
        if given is None:
            return now + self.limits.timeout_ms / 1000
        if not given.isdigit() or not 1 <= int(given[:9]) <= MOST_TIMEOUT_MS:
            raise Refusal(400, f"X-Request-Timeout-Ms must be a whole number from 1 to {MOST_TIMEOUT_MS}")
        return now + int(given) / 1000

    def _id(self, headers: Headers) -> bytes:
        given = headers.get(b"x-request-id")
        if given is None:
            return b"%x" % next(self._ids)
        if len(given) > 128 or not PRINTABLE.issuperset(given):
            raise Refusal(400, "X-Request-Id must be at most 128 printable characters without spaces")
        return given

    def _infer(self, model: Model) -> Handler:
        outputs, name, version = model.outputs, model.name, model.version
        read = oip.Reader(model.inputs, model.outputs)

        def handle(request: Request, respond: Respond) -> Cancel:
            call = read(request.body, request.headers)
            arrays: Any = call.tensors
            rows = len(next(iter(arrays.values())))
            if any(len(array) != rows for array in arrays.values()):
                raise Refusal(400, "the inputs have different numbers of rows")
            self._check(model, arrays, rows)

            def done(found: Any, headers: Headers) -> Response:
                response = oip.answer(call, name, version, found, outputs)
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

    def _predict(self, model: Model) -> Handler:
        read = intake.images if model.spec.image else intake.texts

        def handle(request: Request, respond: Respond) -> Cancel:
            payload = read(request.body, request.headers)
            identity = self._id(request.headers)
            request.headers[b"x-request-id"] = identity

            def done(found: Any, headers: Headers) -> Response:
                said = {
                    "model": model.name,
                    "version": model.version,
                    "id": identity.decode("ascii"),
                    "predictions": found,
                }
                return Response(body=(orjson.dumps(said),), headers=headers)

            rows, size = len(payload.items), len(request.body)
            if size <= LARGE or not model.spec.image:
                return self._submit(model, payload, rows, size, request, respond, "predict", done)
            return self._decode_first(model, payload, rows, size, request, respond, done)

        return handle

    def _decode_first(
        self, model: Model, payload: Encoded, rows: int, size: int, request: Request, respond: Respond, done: Any
    ) -> Cancel:
        deadline = self._deadline(request.headers, request.received)
        current: Cancel

        def decoded(job: Job) -> None:
            nonlocal current
            try:
                if isinstance(job.result, Exception):
                    self._raise(model, job.result)
                current = self._submit(model, job.result, rows, size, request, respond, "predict", done)
            except Refusal as refusal:
                respond(self._refused(model, "predict", refusal))

        job = Job(self.decoders[model.name], payload, rows, size, deadline, decoded)
        self.batcher.submit(job)
        current = job.cancel
        return lambda: current()  # noqa: PLW0108 - which one it is changes

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
        """Queue it; answer when it is done."""
        headers = request.headers
        own: Headers = {b"x-request-id": self._id(headers)}
        if trace := headers.get(b"traceparent"):
            own[b"traceparent"] = trace
        series, received = self.series[model.name], request.received

        known = key(model.name, payload) if self.cache and isinstance(payload, Tensors | Encoded) else None
        if self.cache and known:
            found = self.cache.get(known)
            (series.misses if found is None else series.hits).value += 1
            if found is not None:
                series.ok[route].value += 1
                respond(done(found, own))
                return lambda: None

        def finish(job: Job) -> None:
            series.in_flight.value -= 1
            result = job.result
            try:
                if isinstance(result, Exception):
                    self._raise(model, result)
                response = done(result, own)
                series.ok[route].value += 1
                if self.cache and known:
                    self.cache.put(known, result)
            except Refusal as refusal:
                refusal.headers.update(own)
                response = self._refused(model, route, refusal)
            except Exception as error:
                response = self._refused(model, route, _broken(error))
            seconds = time.monotonic() - received
            series.seconds[route].observe(seconds)
            if self.log_requests or self.record:
                self._note(model, route, response.status, rows, seconds, own)
            respond(response)

        job = Job(model, payload, rows, size, self._deadline(headers, received), finish)
        try:
            self.batcher.submit(job)
        except Refusal as refusal:
            series.shed["queue" if refusal.status == 429 else "deadline"].value += 1
            raise
        series.in_flight.value += 1

        def cancel() -> None:
            job.cancel()
            series.in_flight.value -= 1
            self._count(model, route, GONE)

        return cancel

    def _raise(self, model: Model, error: Exception) -> None:
        """The client's Refusal for what went wrong with its item."""
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

    def _count(self, model: Model | None, route: str, status: int) -> None:
        key = (model.name, model.version) if model else ("", "")
        self.metrics.value("requests", *key, route, str(status)).value += 1

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

    # Operators

    def _server(self, _: Request, respond: Respond) -> None:
        said = {"name": "loopline", "version": __version__, "extensions": ["binary_tensor_data", "model_repository"]}
        respond(Response(body=(orjson.dumps(said),)))

    def _ready(self, _: Request, respond: Respond) -> None:
        if not self.ready:
            raise Refusal(503, "not ready", headers={b"retry-after": b"1"})
        respond(Response())

    def _index(self, request: Request, respond: Respond) -> None:
        try:
            options = orjson.loads(request.body or b"{}")
        except orjson.JSONDecodeError as error:
            raise Refusal(400, f"the request is not JSON: {error}") from None
        if not isinstance(options, dict):
            raise Refusal(400, "the request must be an object")
        state = "READY" if self.ready else "UNAVAILABLE"
        rows = [{"name": m.name, "version": m.version, "state": state, "reason": ""} for m in self.models.values()]
        wanted = [] if options.get("ready") is True and not self.ready else rows
        respond(Response(body=(orjson.dumps(wanted),)))

    def _metadata(self, model: Model) -> Handler:
        def tensors(of: dict[str, Any]) -> list[dict[str, Any]]:
            return [{"name": t.name, "datatype": t.datatype, "shape": t.shape} for t in of.values()]

        said = {
            "name": model.name,
            "versions": [model.version],
            "platform": "onnxruntime_onnx",
            "inputs": tensors(model.inputs),
            "outputs": tensors(model.outputs),
            "parameters": {
                "bundle": model.bundle.version,
                "task": model.spec.task,
                "labels": model.spec.labels,
                "precision": model.bundle.manifest.quantization,
            },
        }
        body = orjson.dumps(said)
        return lambda _, respond: respond(Response(body=(body,)))

    def _metrics(self, _: Request, respond: Respond) -> None:
        for name, series in self.series.items():
            series.waiting.value = len(self.batcher.lines[name].jobs)
        self.metrics.value("ready").value = self.ready
        self.metrics.value("cache_bytes").value = self.cache.bytes if self.cache else 0
        content, kind = self.metrics.exposition()
        respond(Response(body=(content,), content_type=kind))
