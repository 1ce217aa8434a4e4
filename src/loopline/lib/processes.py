"""Processes that we start, note in a file, and end again: one counts as ours if its number and its start time are those noted."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from loopline.errors import LooplineError
from loopline.lib import files
from loopline.lib.http import answers
from loopline.lib.waiting import until

READY_SECONDS = 30.0
END_SECONDS = 40.0  # a server drains for 30


@dataclass(frozen=True)
class Process:
    """One that we started. created: its start time as the system has it."""

    name: str
    pid: int
    created: float
    address: str


def start(
    name: str,
    command: Sequence[str],
    address: str,
    folder: Path,
    env: Mapping[str, str] | None = None,
    *,
    again: bool = False,
) -> Process:
    """Start it, with a log in the folder: NAME.log, the one before it NAME.log.1. env: beside our own. again: the log goes on."""
    import psutil

    path = folder / f"{name}.log"
    if path.exists() and not again:
        path.replace(folder / f"{name}.log.1")
    with path.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
    process.returncode = 0  # it may outlive us: Popen is not to complain of that
    return Process(name, process.pid, psutil.Process(process.pid).create_time(), address)


def wait(process: Process, ready: str, folder: Path) -> None:
    """Return when the address `ready` answers. Raises LooplineError with the log's end if the process ends or takes too long."""
    if not until(lambda: answers(ready) or not alive(process), READY_SECONDS) or not alive(process):
        raise not_ready(process.name, folder)


def not_ready(name: str, folder: Path) -> LooplineError:
    """The error for a process that does not answer, with the end of its log."""
    tail = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-800:]
    return LooplineError(f"{name} did not get ready; the end of {folder}/{name}.log:\n{tail}")


def alive(process: Process) -> bool:
    """It runs, and is the one that we started."""
    import psutil

    try:
        found = psutil.Process(process.pid)
        return bool(found.create_time() == process.created and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def running(folder: Path) -> list[Process]:
    """What is noted in the folder and still runs."""
    try:
        rows = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        noted = [Process(**row) for row in rows]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise LooplineError(
            f"{folder}/state.json is damaged, or of another version: remove it, and end what still runs by hand"
        ) from error
    return [process for process in noted if alive(process)]


def save(processes: Sequence[Process], folder: Path) -> None:
    """Note these, in place of what was noted."""
    files.write(folder / "state.json", json.dumps([asdict(process) for process in processes]), shared=True)


def taken(ports: Iterable[int]) -> list[int]:
    """Those of the ports of 127.0.0.1 that a process listens on."""
    found = []
    for port in ports:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has ended does not count
            try:
                listener.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                found.append(port)
    return found


def end(processes: Sequence[Process]) -> None:
    """Ask each to end, the last started first; what has not after a while is killed."""
    left = [process for process in reversed(processes) if alive(process)]
    for process in left:
        _signal(process, signal.SIGTERM)
    until(lambda: not any(map(alive, left)), END_SECONDS)
    for process in filter(alive, left):
        _signal(process, signal.SIGKILL)
    # Our own child is buried here. Another process's child is for its parent to bury.
    for process in processes:
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it ended since we looked
        try:
            os.kill(process.pid, number)
        except PermissionError as error:
            raise LooplineError(f"{process.name} was started by another user, who alone can end it") from error
