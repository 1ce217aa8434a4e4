"""Start a server on a core of its own, read its memory and processor time, and stop it. Linux only, since it reads /proc."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving import asks
from benchmarks.serving.asks import Ask, Sample

HERE = Path(__file__).parent
LOOPLINE_BIN = Path(sys.executable).parent
PEERS_BIN = Path(os.environ.get("PEERS", ".venv-peers")).resolve() / "bin"
START_SECONDS = 60.0
END_SECONDS = 8.0
QUIET = {  # no server reports its use to its maker
    "ORT_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Kind:
    """A server. sends: its requests in words. command: with PORT and BUNDLES as placeholders. package: empty for Loopline.

    file: makes a request with an image file. models: the models that it can serve; empty: all.
    """

    name: str
    sends: str
    ask: Callable[[Sample], Ask]
    command: tuple[str, ...]
    package: str
    file: Callable[[Sample], Ask] | None = None
    models: tuple[str, ...] = ()


def _peer(module: str) -> tuple[str, ...]:
    return (str(PEERS_BIN / "python"), str(HERE / "peers" / f"{module}.py"))


KINDS = (
    Kind(
        "Loopline",
        "V2 with binary tensors",
        asks.v2_binary,
        (str(LOOPLINE_BIN / "loopline"), "serve", "BUNDLES", "--port", "PORT", "--grace", "0.1"),
        "",
        asks.file_predict,
    ),
    Kind("FastAPI, bytes", "raw bytes", asks.raw, _peer("fastapi_raw"), "fastapi", asks.file_raw),
    Kind("FastAPI, JSON", "lists in JSON", asks.nested, _peer("fastapi_json"), "fastapi"),
    Kind("MLServer", "V2 in JSON", asks.v2_json, _peer("mlserver_peer"), "mlserver"),
    Kind("LitServe", "base64 in JSON", asks.base64_one, _peer("litserve_peer"), "litserve"),
    Kind(
        "BentoML",
        "base64 in JSON",
        asks.base64_many,
        (str(PEERS_BIN / "bentoml"), "serve", "bentoml_peer:Peer", "--host", "127.0.0.1", "--port", "PORT"),
        "bentoml",
    ),
    Kind(
        "mlflow serve",
        "lists in JSON",
        asks.mlflow,
        (str(LOOPLINE_BIN / "python"), str(HERE / "peers" / "mlflow_peer.py")),
        "mlflow",
        models=("classifier",),
    ),
)


class Failed(Exception):
    """The server did not start or gave a wrong answer."""


def cores() -> tuple[int, int]:
    """The server's core and the load generator's. Raises SystemExit on a machine with one core."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        sys.exit("the benchmark needs two cores: one for the server and one for the load")
    return usable[0], usable[-1]


def many_files() -> None:
    """Raise the limit of open connections of this process and its children to what the system allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Server:
    """A running server. start_seconds: from the start of its process to right answers by all models."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, start_seconds: float) -> None:
        """process: the parent of all its processes."""
        self.process, self.port, self.start_seconds = process, port, start_seconds

    def _members(self) -> list[Path]:
        return [Path("/proc", pid) for pid, _ in family(self.process.pid)]

    def memory(self) -> float:
        """Resident MB of all its processes. Memory that they share is counted once, in the parent."""
        total = 0
        for path in self._members():
            rows = (line.split() for line in (path / "smaps_rollup").read_text().splitlines()[1:])
            kilobytes = {row[0].rstrip(":"): int(row[1]) for row in rows}
            parent = path.name == str(self.process.pid)
            total += kilobytes["Rss"] if parent else kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
        return total / 1024

    def cpu_seconds(self) -> float:
        """Processor time of all its live threads."""
        total = 0
        for path in self._members():
            for thread in (path / "task").glob("*/schedstat"):
                total += int(thread.read_text().split()[0])
        return total / 1e9


def _stat(path: Path) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, ..., and the start time as the 20th; empty if it has ended."""
    try:
        return (path / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def family(pid: int) -> list[tuple[str, str]]:
    """Process ids and start times of a process and its live descendants, parents first."""
    rows = {path.name: fields for path in Path("/proc").glob("[0-9]*") if (fields := _stat(path)) and fields[0] != "Z"}
    members = [str(pid)] if str(pid) in rows else []
    for parent in members:
        members += [name for name, fields in rows.items() if fields[1] == parent]
    return [(name, rows[name][19]) for name in members]


@contextmanager
def running(kind: Kind, folders: Sequence[Path], samples: Sequence[Sample], scratch: Path) -> Iterator[Server]:
    """Start a server on the first core, yield it once it answers each sample rightly, then stop it. Raises Failed with its log."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = int(reserved.getsockname()[1])
    names = [str(folder.resolve()) for folder in folders]
    command = [
        word for part in kind.command for word in (names if part == "BUNDLES" else [part.replace("PORT", str(port))])
    ]
    environment = os.environ | QUIET
    environment |= {
        "PATH": f"{Path(command[0]).parent}{os.pathsep}{os.environ['PATH']}",
        "BUNDLES": os.pathsep.join(names),
        "PORT": str(port),
        "SCRATCH": str(scratch),
        "BENTOML_HOME": str(scratch / "bentoml"),
        "PYTHONPATH": str(HERE / "peers") if kind.package else "",
        "OMP_NUM_THREADS": "1",
    }
    log = scratch / "server.log"
    with log.open("wb") as output:
        began = time.perf_counter()
        pinned = ["taskset", "--cpu-list", str(cores()[0]), *command]
        try:
            process = subprocess.Popen(pinned, env=environment, cwd=scratch, stdout=output, stderr=output)
        except OSError as error:
            raise Failed(str(error)) from error
    try:
        for sample in samples:
            _answers(process, port, kind.ask(sample), sample, began, log)
        yield Server(process, port, time.perf_counter() - began)
    finally:
        _end(process)


def _answers(process: subprocess.Popen[bytes], port: int, ask: Ask, sample: Sample, began: float, log: Path) -> None:
    wrong = "it does not listen"
    while time.perf_counter() - began < START_SECONDS:
        try:
            wrong = asks.check(port, ask, sample)
        except OSError:
            pass
        else:
            if not wrong:
                return
        if process.poll() is not None:
            wrong = f"it ended with {process.returncode}"
            break
        time.sleep(0.005)
    raise Failed(f"{sample.model}: {wrong}\n{log.read_text(errors='replace')[-1500:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a process and its descendants, by SIGTERM and then by SIGKILL. Start times tell them from others with a reused id."""
    members = family(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    until = time.perf_counter() + END_SECONDS
    while (left := [pid for pid, began in members if _same(pid, began)]) and time.perf_counter() < until:
        process.poll()
        time.sleep(0.02)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    process.wait()


def _same(pid: str, began: str) -> bool:
    fields = _stat(Path("/proc", pid))
    return bool(fields) and fields[0] != "Z" and fields[19] == began
