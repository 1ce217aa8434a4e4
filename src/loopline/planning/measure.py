"""Measures the profile of a bundle on this machine: a real server on one core answers HTTP requests.

If there are two cores or more, the server has the first one and the client the last. Figures are medians over repeats, which
alternate between the batch sizes.
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

SIZES = (
    1,
    1,
    1,
    1,
    2,
    4,
    8,
    16,
    32,
)  # requests sent together; single ones are repeated, since their spread is measured too
SHARES = (0.5, 0.9, 0.98, 0.995, 1.0)  # bounds of the groups of single requests, from the fastest
START_SECONDS = 60.0  # longest time until the first right answer
TIMEOUT = 60  # longest time of an answer, in seconds
WARM, LEAST_ROUNDS = 5, 20  # rounds that are not counted, and the least number of those that are
SECONDS = 60.0  # no round begins after this time, except the least number
LONG_SECONDS = 1.0  # larger batches than one that takes longer are left out
ENGINE_SECONDS = 1.0
ENGINE_ROUNDS = 3
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)  # numbers of engines at once, up to the number of cores, which is measured too


def measure(folder: Path, *, starts: int = 5, rounds: int = 300) -> dict[str, Any]:
    """Measure the bundle in `folder`; return a `loopline.planning.plan_files.Profile` in its JSON form. Raises LooplineError.

    The requests are the bundle's golden samples, sent to /predict. rounds: largest number of rounds of each batch size.
    """
    if starts < 1 or rounds < LEAST_ROUNDS:
        raise LooplineError(f"measuring needs at least 1 start and {LEAST_ROUNDS} rounds")
    (watched,) = sentinel.load([folder])
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    counts = sorted({1, *(count for count in COUNTS if count <= len(cores)), len(cores) or 1})
    engines = [{count: _engines(folder, cores[:count]) for count in counts} for _ in range(ENGINE_ROUNDS)]
    with tempfile.TemporaryDirectory(prefix="loopline-profile-") as scratch:
        start_seconds = []
        for remaining in range(starts, 0, -1):
            with running(folder, watched, cores, Path(scratch)) as (process, seconds):
                start_seconds.append(seconds)
                if remaining > 1:
                    continue
                with pinned(cores[-1:]):
                    batches, single = _batches(process.address, watched, rounds)
                memory = _memory(process.pid)
    return {
        "schema": 1,
        "model": watched.name,
        "version": watched.version,
        "processor": _processor(),
        "starts": start_seconds,
        "batches": batches,
        "spread": _spread(single),
        "engines": {
            count: float(np.median([engine["rate"] for turn in engines for engine in turn[count]])) for count in counts
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
    """Bind this process, and those that it starts in the block, to `cores`. An empty list changes nothing."""
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
    """Run an engine on each of these cores at the same time; return their figures."""
    command = [sys.executable, "-m", "loopline.planning.engine", str(folder), str(ENGINE_SECONDS)]
    with ExitStack() as stack:
        started = []
        for own in [[core] for core in cores] or [[]]:
            with pinned(own):
                started.append(stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))
        outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise LooplineError(f"{folder}: its model cannot be run; the error is printed above")
    return [json.loads(output) for output in outputs]


@contextmanager
def running(
    folder: Path, watched: sentinel.Watched, cores: Sequence[int], scratch: Path
) -> Iterator[tuple[processes.Process, float]]:
    """Run a server on the first core; yield it with the seconds from its start to its first right answer."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "loopline.cli", "serve", str(folder), "--port", str(port)]
    # The long timeout lets a slow model answer.
    command += ["--slots", "1", "--timeout-ms", str(TIMEOUT * 1000), "--grace", "0"]
    began = time.perf_counter()
    with pinned(cores[:1]):
        process = processes.start("server", command, f"http://127.0.0.1:{port}", scratch)
    try:
        while (result := sentinel.check(process.address, watched, watched.samples[0])[0]) != "same":
            if result != "failed":
                raise LooplineError(f"{folder}: this machine does not give the bundle's golden answers: {result}")
            if not processes.alive(process) or time.perf_counter() - began > START_SECONDS:
                raise processes.not_ready(process.name, scratch)
            time.sleep(0.002)
        yield process, time.perf_counter() - began
    finally:
        processes.end([process])


def _batches(address: str, watched: sentinel.Watched, rounds: int) -> tuple[dict[int, float], list[float]]:
    """Send requests together; return the median seconds until all are answered, by their number, and all times of single ones."""
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
                elif spent > LONG_SECONDS:  # larger batches are left out, as the server does at its start
                    seconds = {smaller: times for smaller, times in seconds.items() if smaller <= size}
    return {size: float(np.median(times)) for size, times in seconds.items()}, seconds[1]


def request(model: str, sample: bytes | str) -> bytes:
    """The bytes of a request to /predict/MODEL."""
    is_text = isinstance(sample, str)
    body = json.dumps({"text": sample}).encode() if isinstance(sample, str) else sample
    kind = "application/json" if is_text else "application/octet-stream"
    head = f"POST /predict/{model} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _answered(client: socket.socket) -> None:
    """Read one answer. Raises LooplineError unless its status is 200."""
    data = b""
    while True:
        more = client.recv(1 << 16)
        data += more
        head, end, body = data.partition(b"\r\n\r\n")
        if not more or (end and not head.startswith(b"HTTP/1.1 200")):
            raise LooplineError(f"the server did not answer with status 200: {data[:200]!r}")
        if end and len(body) >= int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
            return


def _spread(seconds: Sequence[float]) -> list[tuple[float, float]]:
    """The groups of single requests between SHARES: (share of the requests, mean seconds above the median)."""
    ordered, middle = np.sort(seconds), float(np.median(seconds))
    bounds = [0, *(round(share * len(ordered)) for share in SHARES)]
    parts = [ordered[a:b] for a, b in pairwise(bounds) if b > a]
    return [(len(part) / len(ordered), max(0.0, float(part.mean()) - middle)) for part in parts]


def _memory(pid: int) -> dict[str, float]:
    import psutil

    memory = psutil.Process(pid).memory_full_info()
    return {"private": memory.uss / 2**20, "resident": memory.rss / 2**20}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
