"""The routes: the Open Inference Protocol v2, the predict route for people, and routes for operators. See docs/serving.md.

One table holds every route of every loaded model, so finding a route is a look-up. `admit` refuses an invalid request
before the server reads its body.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson

from loopline import __version__
from loopline.lib import credentials
from loopline.server import feedback, oip, openapi, pages
from loopline.server import journal_writer as journals
from loopline.server.exchange import broken
from loopline.server.inference import Handler, Inference
from loopline.server.limits import Limits
from loopline.server.messages import Cancel, Headers, Refusal, Request, Respond, Response, decompress
from loopline.server.metrics import Metrics
from loopline.server.model import Model
from loopline.server.tracing import Record


class Route(NamedTuple):
    """A handler, the most bytes that a request's body may have, and the model whose queue must have room, if any."""

    handle: Handler
    limit: int = 0
    model: Model | None = None
    name: str = "other"  # the metrics' `route` label
    open: bool = False  # answers without a token


class App:
    """The application: it answers requests with its models. See `messages.Application`."""

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
        journal: journals.JournalOptions | None = None,
    ) -> None:
        """Must be called in a running event loop. Raises LooplineError if the journal's folder cannot be written.

        token: the bearer token that clients must send, if any. demo: see `pages`. The others: see `Inference`.
        """
        self.models = {model.name: model for model in models}
        self.limits, self.token = limits or Limits(), token.encode() if token else None
        self.metrics = Metrics()
        self.journal = journals.Journal(journal, models, self.metrics) if journal else None
        self.inference = Inference(
            models,
            self.metrics,
            slots=slots,
            limits=self.limits,
            refusal=self.refusal,
            log_requests=log_requests,
            record=record,
            journal=self.journal,
        )
        self.connections: Callable[[], int] = lambda: 0  # `run` sets it to the server's count
        self.ready = False
        self.routes = self._routes(demo=demo)

    def _routes(self, *, demo: bool) -> dict[str, dict[str, Route]]:
        """The table of routes: path -> method -> route."""
        live = Route(lambda _, respond: respond(Response()), open=True)
        table: dict[str, dict[str, Route]] = {
            "/v2": {"GET": Route(self._server)},
            "/v2/health/live": {"GET": live},
            "/v2/health/ready": {"GET": Route(self._ready, open=True)},
            "/v2/repository/index": {"POST": Route(self._index, 4096)},
            "/metrics": {"GET": Route(self._metrics)},
        }
        for model in self.models.values():
            # The route has no model, so that labels are accepted even when the model's queue is full.
            labels = self.journal and Route(
                feedback.handler(model, self.journal, self.metrics), feedback.BODY_BYTES, name="feedback"
            )
            for base in (f"/v2/models/{model.name}", f"/v2/models/{model.name}/versions/{model.version}"):
                table[base] = {"GET": Route(self._metadata(model))}
                table[f"{base}/ready"] = {"GET": Route(self._ready)}
                table[f"{base}/infer"] = {
                    "POST": Route(self.inference.infer(model), self.limits.body_bytes, model, "infer")
                }
                if labels:
                    table[f"{base}/feedback"] = {"POST": labels}
            table[f"/predict/{model.name}"] = {
                "POST": Route(self.inference.predict(model), self.limits.body_bytes, model, "predict")
            }
        document = orjson.dumps(
            openapi.document(list(self.models.values()), token=self.token is not None, journal=self.journal is not None)
        )
        for path, page in pages.pages(list(self.models.values()), document, demo=demo).items():
            table[path] = {"GET": Route(page.answer, open=page.open)}
        for methods in table.values():
            if "GET" in methods:
                methods["HEAD"] = methods["GET"]
        return table

    # Called by `connection`

    def _route(self, method: str, path: str) -> Route:
        methods = self.routes.get(path) or self.routes.get(path.rstrip("/") or "/")
        if methods is None:
            raise Refusal(404, f"there is no route {path[:200]}; /v2/repository/index lists the models")
        if method not in methods:
            raise Refusal(405, f"{path} answers {', '.join(methods)}", headers={b"allow": ", ".join(methods).encode()})
        return methods[method]

    def wakes(self, wake: Callable[[], None]) -> None:
        """See `messages.Application`."""
        self.inference.batcher.wake = wake

    def newest(self, waited: float) -> bool:
        """See `messages.Application`."""
        return self.inference.batcher.newest(waited)

    def hungry(self, spent: float) -> bool:
        """See `messages.Application`."""
        return self.inference.batcher.hungry(spent)

    def turn(self, spent: float) -> None:
        """See `messages.Application`."""
        self.inference.batcher.turn(spent)

    def admit(self, method: str, path: str, headers: Headers, arrived: float) -> int:
        """See `messages.Application`."""
        route = self._route(method, path)
        try:
            if self.token and not route.open and not credentials.bearer(headers.get(b"authorization", b""), self.token):
                raise Refusal(401, "this server requires a bearer token", headers={b"www-authenticate": b"Bearer"})
            if route.model is not None:
                self.inference.admit(route.model, headers, arrived)
        except Exception as error:
            raise _about(route, error) from None
        return route.limit

    def about(self, method: str, path: str, refusal: Refusal) -> Refusal:
        """See `messages.Application`."""
        return _about(self._route(method, path), refusal)

    def answer(self, request: Request, respond: Respond) -> Cancel | None:
        """See `messages.Application`."""
        route = self._route(request.method, request.path)
        try:
            if request.body and (encodings := request.headers.get(b"content-encoding")):
                request.body = decompress(request.body, encodings, route.limit)
            if request.body.startswith(BOM_UTF8) and oip.LENGTH not in request.headers:
                request.body = request.body[len(BOM_UTF8) :]  # editors on Windows write it
            return route.handle(request, respond)
        except Exception as error:
            raise _about(route, error) from None

    def refusal(self, refusal: Refusal) -> Response:
        """See `messages.Application`. Counts the refusal: every one passes here."""
        model, route = refusal.about or (None, "other")
        self.inference.count(model, route, refusal.status)
        body = orjson.dumps({"error": refusal.message})
        return Response(refusal.status, (body,), headers=refusal.headers, close=refusal.close)

    # Routes for operators

    def _server(self, _: Request, respond: Respond) -> None:
        facts = {"name": "loopline", "version": __version__, "extensions": ["binary_tensor_data", "model_repository"]}
        respond(Response(body=(orjson.dumps(facts),)))

    def _ready(self, _: Request, respond: Respond) -> None:
        if not self.ready:
            raise Refusal(503, "not ready", headers={b"retry-after": b"1"})
        respond(Response())

    def _index(self, request: Request, respond: Respond) -> None:
        try:
            options = orjson.loads(request.body or b"{}")
        except orjson.JSONDecodeError as error:
            raise Refusal(400, f"the request is not JSON: {error}") from None
        if not isinstance(options, dict | None):
            raise Refusal(400, "the request must be an object")
        state = "READY" if self.ready else "UNAVAILABLE"
        rows = [{"name": m.name, "version": m.version, "state": state, "reason": ""} for m in self.models.values()]
        if options and options.get("ready") is True and not self.ready:
            rows = []
        respond(Response(body=(orjson.dumps(rows),)))

    def _metadata(self, model: Model) -> Handler:
        def described(tensors: dict[str, Any]) -> list[dict[str, Any]]:
            return [{"name": t.name, "datatype": t.datatype, "shape": t.shape} for t in tensors.values()]

        metadata = {
            "name": model.name,
            "versions": [model.version],
            "platform": "onnxruntime_onnx",
            "inputs": described(model.inputs),
            "outputs": described(model.outputs),
            "parameters": {
                "bundle": model.bundle.version,
                "task": model.spec.task,
                "labels": model.spec.labels,
                "precision": model.bundle.manifest.quantization,
                "unjudged": model.bundle.manifest.unjudged,
            },
        }
        body = orjson.dumps(metadata)
        return lambda _, respond: respond(Response(body=(body,)))

    def _metrics(self, _: Request, respond: Respond) -> None:
        self.inference.scrape()
        self.metrics.value("ready").value = self.ready
        self.metrics.value("connections").value = self.connections()
        content, content_type = self.metrics.exposition()
        respond(Response(body=(content,), content_type=content_type))


def _about(route: Route, error: Exception) -> Refusal:
    """The refusal with a note of its route; of any other error, a refusal with status 500."""
    refusal = error if isinstance(error, Refusal) else broken(error)
    refusal.about = route.model, route.name
    return refusal
