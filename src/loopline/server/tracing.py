"""OpenTelemetry spans of requests, behind the extra `otel`. Off unless OTEL_EXPORTER_OTLP_ENDPOINT names a collector.

A request's `traceparent` makes its span a part of the caller's trace. A separate thread sends the spans in batches.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loopline.errors import LooplineError
from loopline.server.messages import Headers

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
Record = Callable[..., None]


@dataclass(frozen=True)
class Spans:
    """Functions of a recorder. record: records a request as a span. shutdown: sends the last spans."""

    record: Record
    shutdown: Callable[[], None]


def recorder() -> Spans | None:
    """The recorder of spans, or None if no collector is named.

    Raises LooplineError if one is named and the extra is not installed.
    """
    if not os.environ.get(ENDPOINT):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError as error:
        raise LooplineError(f"{ENDPOINT} is set but {error.name} is not installed: install loopline[otel]") from error

    provider = TracerProvider(
        resource=Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "loopline")})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer, propagator = provider.get_tracer("loopline"), TraceContextTextMapPropagator()

    def record(*, name: str, seconds: float, status: int, headers: Headers, **attributes: Any) -> None:
        parent = headers.get(b"traceparent")
        context = propagator.extract({"traceparent": parent.decode("ascii", "replace")}) if parent else None
        end = time.time_ns()
        span = tracer.start_span(
            name, context=context, kind=SpanKind.SERVER, start_time=end - int(seconds * 1e9), attributes=attributes
        )
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    return Spans(record, provider.shutdown)
