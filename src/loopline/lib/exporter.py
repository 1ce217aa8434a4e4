"""An HTTP server of a process's metrics, on a separate port, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from loopline.errors import LooplineError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


@contextmanager
def exported(registry: CollectorRegistry, host: str, port: int) -> Iterator[None]:
    """Serve the metrics of `registry` during the block. Raises LooplineError if the port cannot be opened."""
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, OverflowError) as error:
        raise LooplineError(f"cannot listen on {host}:{port}: {error}; choose another --port") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
