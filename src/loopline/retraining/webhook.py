"""The retrainer's HTTP server: it authenticates webhooks, stores their alerts and answers with 202. The worker does the rest.

`POST /alertmanager` requires the bearer token, `POST /grafana` the signature; `GET /metrics` and `GET /healthz` are open.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from loopline.errors import LooplineError
from loopline.retraining import DECISIONS, METRICS, RESULTS, RUNNING, RUNS, alerts
from loopline.retraining.alerts import Secrets
from loopline.retraining.guard import Action
from loopline.retraining.run_store import RetrainerStore
from loopline.retraining.worker import Worker

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class _TooLargeError(Exception):
    """The body is larger than the limit."""


@dataclass(frozen=True)
class _Service:
    worker: Worker
    secrets: Secrets
    models: frozenset[str]
    news: threading.Event

    async def alertmanager(self, request: Request) -> Response:
        if not alerts.bearer(request.headers.get("authorization"), self.secrets.token):
            return _refuse(401, "the bearer token is missing or wrong")
        return await self._take(request, "alertmanager", lambda _: (True, None))

    async def grafana(self, request: Request) -> Response:
        stamp, signature = request.headers.get(alerts.STAMP), request.headers.get(alerts.SIGNATURE)

        def check(body: bytes) -> tuple[bool, tuple[str, float] | None]:
            now = time.time()
            fine = alerts.signed(body, stamp, signature, self.secrets.hmac, now)
            return fine, (f"{stamp}:{signature}", now + 2 * alerts.STALE)

        return await self._take(request, "grafana", check)

    async def _take(
        self, request: Request, source: str, check: Callable[[bytes], tuple[bool, tuple[str, float] | None]]
    ) -> Response:
        try:
            body = await _body(request)
        except _TooLargeError:
            return _refuse(413, f"the body is over {alerts.LARGEST >> 10} KiB")
        fine, signature = check(body)
        if not fine:
            return _refuse(401, "the signature is missing, wrong or old")
        try:
            received = alerts.read(body, self.models)
        except LooplineError as error:
            return _refuse(400, str(error))
        if not await run_in_threadpool(self.worker.store.receive, received, source, signature):
            return _refuse(401, "this webhook was received before")
        self.news.set()
        return JSONResponse({"alerts": len(received)}, 202)


async def _body(request: Request) -> bytes:
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > alerts.LARGEST:
        raise _TooLargeError
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > alerts.LARGEST:
            raise _TooLargeError
        parts.append(part)
    return b"".join(parts)


def _refuse(code: int, why: str) -> Response:
    return JSONResponse({"error": why}, code)


class Exported:
    """The metrics. They are computed from the stored state at each scrape, so they survive a restart."""

    def __init__(self, store: RetrainerStore, models: Iterable[str]) -> None:
        """models: each has series from the start, so that its first failure is an increase."""
        self.store, self.models = store, sorted(models)

    def collect(self) -> Iterable[Metric]:
        """The metrics for prometheus_client."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        decided, runs = self.store.decision_counts(), self.store.runs()
        family = CounterMetricFamily(
            DECISIONS, METRICS[f"{DECISIONS}_total"][0], labels=METRICS[f"{DECISIONS}_total"][1]
        )
        for model in self.models:
            for action in Action:
                family.add_metric([model, action.value], decided.get((model, action.value), 0))
        yield family
        family = CounterMetricFamily(RUNS, METRICS[f"{RUNS}_total"][0], labels=METRICS[f"{RUNS}_total"][1])
        for model in self.models:
            for result in RESULTS:
                family.add_metric([model, result], sum((run.model, run.result) == (model, result) for run in runs))
        yield family
        yield GaugeMetricFamily(RUNNING, METRICS[RUNNING][0], value=float(self.store.under_way() is not None))


def app(worker: Worker, secrets: Secrets, models: Iterable[str]) -> Starlette:
    """The ASGI application. It runs the worker in a thread."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    stop, news = threading.Event(), threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop, news), name="worker", daemon=True)
    service = _Service(worker, secrets, frozenset(models), news)
    registry = CollectorRegistry()
    registry.register(Exported(worker.store, service.models))

    def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    def healthz(_: Request) -> Response:
        return Response("ok\n") if thread.is_alive() else Response("the worker has died\n", 503)

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        thread.start()
        yield
        stop.set()
        news.set()
        await run_in_threadpool(thread.join)

    routes: list[Any] = [
        Route("/alertmanager", service.alertmanager, methods=["POST"]),
        Route("/grafana", service.grafana, methods=["POST"]),
        Route("/metrics", metrics),
        Route("/healthz", healthz),
    ]
    return Starlette(routes=routes, lifespan=life)


def run(worker: Worker, secrets: Secrets, models: Iterable[str], port: int, host: str = "127.0.0.1") -> None:
    """Listen until SIGTERM. Raises LooplineError if another retrainer uses this state."""
    import uvicorn

    with worker.store.at_work():
        uvicorn.run(
            app(worker, secrets, models),
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=5,
            server_header=False,
        )
