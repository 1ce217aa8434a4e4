"""The profile of a bundle on this machine: a real server on one core, asked over HTTP for what people send it.

Where there are two cores or more, the server has the first and the load the last. Medians over repeats, in turn.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from loopline.errors import LooplineError
from loopline.lib import processes
from loopline.observability import sentinel

SIZES = (1, 1, 1, 1, 2, 4, 8, 16, 32)  # single ones more often: their spread counts too
SHARES = (0.5, 0.9, 0.98, 0.995, 1.0)  # of single requests, from the fastest: what their spread is told by
START_SECONDS = 60.0
TIMEOUT = 60  # seconds of an answer
WARM, LEAST_ROUNDS = 5, 20
SECONDS = 60.0  # after which no more rounds are begun, once there were the least
LONG_SECONDS = 1.0
ENGINE_SECONDS = 1.0
ENGINE_ROUNDS = 3
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)  # of engines at once, and as many as there are cores


def measure(folder: Path, *, starts: int = 5, rounds: int = 300) -> dict[str, Any]:
    """A `loopline.planning.inputs.Profile` as JSON has it. rounds: of each batch size, at most. Raises LooplineError.

    Its requests are the bundle's golden samples, by the route for people.
    """
    if starts < 1 or rounds < LEAST_ROUNDS:
        raise LooplineError(f"at least 1 start and {LEAST_ROUNDS} rounds are needed for a figure")
    (watched,) = sentinel.load([folder])
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    counts = sorted({1, *(count for count in COUNTS if count <= len(cores)), len(cores) or 1})
    engines = [{count: _engines(folder, cores[:count]) for count in counts} for _ in range(ENGINE_ROUNDS)]
    with tempfile.TemporaryDirectory(prefix="loopline-profile-") as scratch:
        began = []
        for last in range(starts, 0, -1):
            with running(folder, watched, cores, Path(scratch)) as (process, seconds):
                began.append(seconds)
                if last > 1:
                    continue
                with pinned(cores[-1:]):
                    batches, single = _batches(process.address, watched, rounds)
                memory = _memory(process.pid)
    return {
        "schema": 1,
        "model": watched.name,
        "version": watched.version,
        "processor": _processor(),
        "starts": began,
        "batches": batches,
        "spread": _spread(single),
        "engines": {
            count: float(np.median([one["rate"] for turn in engines for one in turn[count]])) for count in counts
        },
        "memory": memory
        | {
            "growth": float(np.median([turn[1][0]["growth"] for turn in engines])),
            "file": (folder / "model.onnx").stat().st_size / 2**20,
        },
        "rounds": len(single) // SIZES.count(1),
        "load_average": os.getloadavg()[0],
    }


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """What runs or starts inside does so on these cores; on any, where there are none."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _engines(folder: Path, cores: Sequence[int]) -> list[dict[str, float]]:
    """The engine on all of these cores at once."""
    command = [sys.executable, "-m", "loopline.planning.engine", str(folder), str(ENGINE_SECONDS)]
    with ExitStack() as stack:
        started = []
        for own in [[core] for core in cores] or [[]]:
            with pinned(own):
                started.append(stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))
        said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise LooplineError(f"{folder}: its model cannot be run; see above")
    return [json.loads(text) for text in said]


@contextmanager
def running(
    folder: Path, watched: sentinel.Watched, cores: Sequence[int], scratch: Path
) -> Iterator[tuple[processes.Process, float]]:
    """A server on the first core, and the seconds from its start to its first right answer."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "loopline.cli", "serve", str(folder), "--port", str(port)]
    command += ["--slots", "1", "--timeout-ms", str(TIMEOUT * 1000), "--grace", "0"]  # a slow model is not refused
    began = time.perf_counter()
    with pinned(cores[:1]):
        process = processes.start("server", command, f"http://127.0.0.1:{port}", scratch)
    try:
        while (found := sentinel.check(process.address, watched, watched.samples[0])[0]) != "same":
            if found != "failed":
                raise LooplineError(f"{folder}: its golden answers are not those of this machine: {found}")
            if not processes.alive(process) or time.perf_counter() - began > START_SECONDS:
                raise processes.not_ready(process.name, scratch)
            time.sleep(0.002)
        yield process, time.perf_counter() - began
    finally:
        processes.end([process])


def _batches(address: str, watched: sentinel.Watched, rounds: int) -> tuple[dict[int, float], list[float]]:
    """Median seconds from sending so many requests at once until all are answered, and all times of single ones."""
    host, _, port = address.removeprefix("http://").partition(":")
    requests = [request(watched.name, sample.given) for sample in watched.samples]
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    began = time.perf_counter()
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection((host, int(port)), TIMEOUT)) for _ in range(max(SIZES))]
        for client in clients:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(-WARM, rounds):
            if number >= LEAST_ROUNDS and time.perf_counter() - began > SECONDS:
                break
            for size in SIZES:
                if size not in seconds:
                    continue
                start = time.perf_counter()
                for place, client in enumerate(clients[:size]):
                    client.sendall(requests[(number + place) % len(requests)])
                for client in clients[:size]:
                    _answered(client)
                spent = time.perf_counter() - start
                if number >= 0:
                    seconds[size].append(spent)
                elif spent > LONG_SECONDS:  # as the server's own start does: a larger batch is not tried
                    seconds = {known: found for known, found in seconds.items() if known <= size}
    return {size: float(np.median(found)) for size, found in seconds.items()}, seconds[1]


def request(model: str, given: bytes | str) -> bytes:
    """The bytes of a request by the route for people."""
    text = isinstance(given, str)
    body = json.dumps({"text": given}).encode() if isinstance(given, str) else given
    kind = "application/json" if text else "application/octet-stream"
    head = f"POST /predict/{model} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _answered(client: socket.socket) -> None:
    """Read one answer. Raises LooplineError if it is none that says 200."""
    data = b""
    while True:
        more = client.recv(1 << 16)
        data += more
        head, end, body = data.partition(b"\r\n\r\n")
        if not more or (end and not head.startswith(b"HTTP/1.1 200")):
            raise LooplineError(f"the server did not answer: {data[:200]!r}")
        if end and len(body) >= int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
            return


def _spread(seconds: Sequence[float]) -> list[tuple[float, float]]:
    """(share, seconds above the median): single requests in groups by their time, each by its mean."""
    ordered, middle = np.sort(seconds), float(np.median(seconds))
    bounds = [0, *(round(share * len(ordered)) for share in SHARES)]
    parts = [ordered[a:b] for a, b in pairwise(bounds) if b > a]
    return [(len(part) / len(ordered), max(0.0, float(part.mean()) - middle)) for part in parts]


def _memory(pid: int) -> dict[str, float]:
    import psutil

    found = psutil.Process(pid).memory_full_info()
    return {"private": found.uss / 2**20, "resident": found.rss / 2**20}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
