"""Run the load on the last core, by wrk for closed loops and `sender` for open ones, and the bare engine on the server's core."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.asks import Ask
from benchmarks.serving.servers import HERE, cores

Figures = dict[str, Any]


def missing_wrk() -> str:
    """Return how to install wrk, empty if it is installed."""
    return (
        ""
        if shutil.which("wrk")
        else "wrk makes the load: apt-get install wrk, brew install wrk, or your system's package of it"
    )


def _on(core: int, *command: object, timeout: float) -> str:
    words = ["taskset", "--cpu-list", str(core), *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-1000:]}{done.stdout[-500:]}")
    return done.stdout


def closed(port: int, ask: Ask, *, connections: int, seconds: int, scratch: Path) -> Figures:
    """Send on every connection as soon as its last answer came. rate: answers a second; p50, p99: ms; failed: requests."""
    body = scratch / "body"
    body.write_bytes(ask.body)
    headers = [f"{name}: {value}" for name, value in ask.headers.items()]
    wrk = ["wrk", "--threads", 1, "--connections", connections, "--timeout", "10s", "--script", HERE / "post.lua"]
    words = [f"http://127.0.0.1:{port}{ask.path}", "--", body, *headers]
    out = _on(cores()[1], *wrk, "--duration", f"{seconds}s", *words, timeout=seconds + 30)
    result = json.loads(next(line for line in out.splitlines() if line.startswith("RESULT "))[7:])
    good = result["requests"] - result["failed"]
    return {
        "rate": good / result["microseconds"] * 1e6,
        "p50": result["p50"] / 1e3,
        "p99": result["p99"] / 1e3,
        "failed": result["failed"],
    }


def scheduled(
    port: int,
    ask: Ask,
    phases: Sequence[tuple[float, float]],
    *,
    connections: int,
    scratch: Path,
    patience: float = 1.0,
    seed: int | None = None,
) -> list[Figures]:
    """Send each request when it is due, without waiting for answers, and return what `sender` sums up of each phase.

    phases: requests a second, and seconds. patience: seconds that a request waits for a free connection. seed: of a Poisson
    schedule; without it requests are evenly spaced.
    """
    body = scratch / "body"
    lines = [f"POST {ask.path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(ask.body)}"]
    lines += [f"{name}: {value}" for name, value in ask.headers.items()]
    body.write_bytes("\r\n".join([*lines, "", ""]).encode() + ask.body)
    order = json.dumps(
        {
            "port": port,
            "request": str(body),
            "phases": phases,
            "connections": connections,
            "patience": patience,
            "seed": seed,
        }
    )
    out = _on(cores()[1], sys.executable, HERE / "sender.py", order, timeout=sum(seconds for _, seconds in phases) + 60)
    return list(json.loads(out))


def engine(folder: Path, outputs: Sequence[str], sample: Path, seconds: float) -> Figures:
    """Run `bare` on the server's core: `session.run` in a loop, which no server can exceed."""
    out = _on(
        cores()[0],
        sys.executable,
        HERE / "bare.py",
        folder,
        ",".join(outputs),
        sample,
        seconds,
        timeout=seconds * 10 + 60,
    )
    figures: Figures = json.loads(out)
    return figures
