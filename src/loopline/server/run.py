"""`loopline serve BUNDLE ...`: load the bundles, warm up, listen, and stop without losing a request.

/v2/health/live answers as soon as the process listens, /v2/health/ready while the models are warm and the server is not stopping.
On SIGTERM the server is not ready at once, but answers for `grace` more seconds, so that load balancers notice. Then it takes no
new connections, finishes the requests in flight and exits with 0. With --share-port a second process may listen on the same port.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loopline.errors import LooplineError
from loopline.lib import credentials
from loopline.lib.options import option
from loopline.server import http, tracing
from loopline.server import journal_writer as journal
from loopline.server.app import App
from loopline.server.limits import Limits
from loopline.server.logs import log
from loopline.server.model import Model, cpu_limit

SWITCH_SECONDS = 0.0005  # longest wait of a slot's thread for the interpreter; 5 ms, Python's default, is too long
BACKLOG = 1024  # connections that may wait to be accepted


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a server runs. verify_key: a public key; only bundles signed with its private key are loaded."""

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8080, "port to listen on; 0 takes any free one")
    share_port: bool = option(
        False, "let other servers with this option listen on --port too; each gets a part of the connections"
    )
    metrics_port: int | None = option(
        None, "second port to answer on, which reaches this process even if several share --port (default: none)"
    )
    slots: int | None = option(
        None, "number of batches that run at once (default: number of cores that this process may use)"
    )
    grace: float = option(1.0, "seconds after SIGTERM in which the server answers but is not ready")
    drain: float = option(30.0, "seconds after the grace to finish requests in flight")
    demo: bool = True
    log_requests: bool = option(False, "log a line for each answer, with its request id")
    limits: Limits = field(default_factory=Limits)
    journal: journal.JournalOptions | None = None
    verify_key: Path | None = None


def found(folder: Path) -> list[Path]:
    """The bundles in a folder such as `models` or a container's mount; the folder itself if it is a bundle or has none."""
    if (folder / "bundle.json").exists():
        return [folder]
    bundles = sorted(path.parent for place in ("*", "*/bundle") for path in folder.glob(f"{place}/bundle.json"))
    return bundles or [folder]


def load(folders: Sequence[Path], verify_key: Path | None = None) -> list[Model]:
    """Verify, load and warm up every bundle. Raises LooplineError for an invalid or unsigned one, and for two of one name."""
    models: dict[str, Model] = {}
    for folder in [bundle for path in folders for bundle in found(path)]:
        start = time.perf_counter()
        model = Model(folder, verify_key=verify_key)
        if model.name in models:
            raise LooplineError(f"{folder}: a model {model.name!r} is already served; serve one version per process")
        model.warm_up()
        models[model.name] = model
        profile = model.profile
        assert profile, "the model is warm"
        log(
            "info",
            "model loaded",
            model=model.name,
            version=model.version,
            precision=model.bundle.manifest.quantization,
            provider=model.provider,
            signed=verify_key is not None,
            best_batch_rows=model.best_rows,
            batch_ms={str(rows): round(seconds * 1e3, 3) for rows, seconds in profile.seconds.items()},
            warm_up_rounds=profile.rounds,
            stable=profile.stable,
            seconds=round(time.perf_counter() - start, 3),
        )
    return list(models.values())


def run(folders: Sequence[Path], options: ServerOptions) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 0, or 1 if requests were cut off."""
    import uvloop

    sys.setswitchinterval(SWITCH_SECONDS)
    listener = bound(options.host, options.port, shared=options.share_port)
    models = load(folders, options.verify_key)
    try:
        listener.listen(BACKLOG)
    except OSError as error:  # another process had bound the port at the same time, and listened first
        listener.close()
        raise _cannot_listen(options.host, options.port, error) from error
    gc.collect()
    gc.freeze()  # models and modules stay in memory, so the collector can skip them
    gc.set_threshold(20_000, 50, 100)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(models, listener, options))


def bound(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket bound to `port`. shared: whether other processes may share the port. Raises LooplineError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise _cannot_listen(host, port, error) from error
    return listener


def _cannot_listen(host: str, port: int, error: Exception) -> LooplineError:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return LooplineError(
            f"{host}:{port} is taken: another program listens there. Choose another port, or start all servers of this port "
            "with --share-port"
        )
    return LooplineError(f"cannot listen on {host}:{port}: {error}")


async def _serve(models: list[Model], listener: socket.socket, options: ServerOptions) -> int:
    loop = asyncio.get_running_loop()
    slots, token = options.slots or cpu_limit(), credentials.secret(credentials.SERVER)
    spans = tracing.recorder()
    app = App(
        models,
        slots=slots,
        limits=options.limits,
        token=token,
        demo=options.demo,
        log_requests=options.log_requests,
        record=spans.record if spans else None,
        journal=options.journal,
    )
    server = http.Server(app)
    app.connections = lambda: len(server.connections)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server.listen(listener)
    if options.metrics_port is not None:
        metrics_listener = bound(options.host, options.metrics_port)
        metrics_listener.listen(BACKLOG)
        server.listen(metrics_listener, urgent=True)
    app.ready = True
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    log("info", "ready", address=f"http://{host}:{port}", models=list(app.models), slots=app.inference.batcher.slots)
    await stop.wait()
    app.ready = False
    log("info", "stopping", connections=len(server.connections))
    await asyncio.sleep(options.grace)
    complete = await server.drain(idle_seconds=min(5.0, options.drain / 2), seconds=options.drain)
    app.inference.close()
    if spans:
        spans.shutdown()
    log("info" if complete else "error", "stopped" if complete else "stopped with requests cut off")
    return 0 if complete else 1
