"""`loopline serve BUNDLE ...`: load, warm up, listen, and end without losing a request.

Three different answers: the process answers /v2/health/live as soon as it listens, /v2/health/ready once the models are warm and
until it is told to stop. SIGTERM: not ready at once, but still answering for `grace` seconds, so that whoever balances the load
sees it; then no new connections, what is in flight is finished, exit 0. With --share-port
a second process may listen on the same port.
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
from loopline.server import http, tracing
from loopline.server import journal_writer as journal
from loopline.server.app import App
from loopline.server.inference import Limits
from loopline.server.logs import log
from loopline.server.model import Model, cpu_limit

SWITCH_SECONDS = 0.0005  # a slot's thread that wants the interpreter waits no longer: Python's 5 ms are many answers
BACKLOG = 1024


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """See `loopline serve --help`.

    share_port: other processes may listen on `port` too. metrics_port: a second one, of this process alone. grace: seconds of
    answering after SIGTERM. drain: seconds to finish what is in flight. verify_key: a public key; a bundle that its owner did not
    sign is not loaded.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    share_port: bool = False
    metrics_port: int | None = None
    slots: int | None = None
    grace: float = 1.0
    drain: float = 30.0
    demo: bool = True
    log_requests: bool = False
    limits: Limits = field(default_factory=Limits)
    journal: journal.JournalOptions | None = None
    verify_key: Path | None = None


def found(folder: Path) -> list[Path]:
    """The folder itself if it is a bundle or has none in it, else the bundles in it: `models`, or what a container has mounted."""
    if (folder / "bundle.json").exists():
        return [folder]
    return sorted(path.parent for place in ("*", "*/bundle") for path in folder.glob(f"{place}/bundle.json")) or [
        folder
    ]


def load(folders: Sequence[Path], verify_key: Path | None = None) -> list[Model]:
    """Every bundle, verified and warm. Raises LooplineError on a bad or unsigned one, and on two of one name."""
    models: dict[str, Model] = {}
    for folder in [bundle for given in folders for bundle in found(given)]:
        start = time.perf_counter()
        model = Model(folder, verify_key=verify_key)
        if model.name in models:
            raise LooplineError(f"{folder}: a model {model.name!r} is already served; serve one version a process")
        profile = model.warm_up()
        models[model.name] = model
        log(
            "info",
            "model loaded",
            model=model.name,
            version=model.version,
            precision=model.bundle.manifest.quantization,
            provider=model.provider,
            signed=verify_key is not None,
            best_batch_rows=model.best_rows,
            batch_ms={str(rows): round(seconds * 1e3, 3) for rows, seconds in profile.items()},
            seconds=round(time.perf_counter() - start, 3),
        )
    return list(models.values())


def run(folders: Sequence[Path], options: ServerOptions) -> int:
    """Serve until told to stop; returns the exit code."""
    import uvloop

    sys.setswitchinterval(SWITCH_SECONDS)
    listener = bound(options.host, options.port, shared=options.share_port)
    models = load(folders, options.verify_key)
    try:
        listener.listen(BACKLOG)
    except OSError as error:  # another one was bound to the port at the same time, and was the first to listen
        listener.close()
        raise _cannot_listen(options.host, options.port, error) from error
    gc.collect()
    gc.freeze()  # models and modules stay: the collector need not look at them again
    gc.set_threshold(20_000, 50, 100)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(models, listener, options))


def bound(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket on `port`. shared: with others that share it. Raises LooplineError where it cannot be had."""
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
            f"{host}:{port} is taken: another program listens there. Choose another port, or start every server of this one "
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
    acceptor = await loop.create_server(server.protocol, sock=listener, backlog=BACKLOG)
    if options.metrics_port is not None:
        own = bound(options.host, options.metrics_port)
        await loop.create_server(server.protocol, sock=own)
    app.ready = True
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    log("info", "ready", address=f"http://{host}:{port}", models=list(app.models), slots=app.inference.batcher.slots)
    await stop.wait()
    app.ready = False
    log("info", "stopping", connections=len(server.connections))
    await asyncio.sleep(options.grace)
    acceptor.close()
    whole = await server.drain(idle_seconds=min(5.0, options.drain / 2), seconds=options.drain)
    app.inference.close()
    if spans:
        spans.shutdown()
    log("info" if whole else "error", "stopped" if whole else "stopped with requests cut off")
    return 0 if whole else 1
