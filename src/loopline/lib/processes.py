"""Background processes: start them, record them in a file, and end them.

A process is recognised by its process id and its start time, since the system gives the id of an ended process to a new one.
"""

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
from loopline.lib.http_client import answers
from loopline.lib.waiting import until

READY_SECONDS = 30.0
END_SECONDS = 40.0  # a server drains for 30


@dataclass(frozen=True)
class Process:
    """A process that `start` started. created: its start time according to the system."""

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
    """Start `command` with a log in `folder`: NAME.log; the previous log becomes NAME.log.1.

    env: variables added to those of this process. again: continue the previous log.
    """
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
    process.returncode = 0  # the process may outlive this one, of which Popen would warn
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
    """Tell whether the process still runs; another process with the same id does not count."""
    import psutil

    try:
        present = psutil.Process(process.pid)
        return bool(present.create_time() == process.created and present.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def running(folder: Path) -> list[Process]:
    """The processes that are recorded in the folder and still run. Raises LooplineError if the record is damaged."""
    try:
        rows = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        recorded = [Process(**row) for row in rows]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise LooplineError(
            f"{folder}/state.json is damaged, or of another version: remove it, and end what still runs by hand"
        ) from error
    return [process for process in recorded if alive(process)]


def save(processes: Sequence[Process], folder: Path) -> None:
    """Record these processes in the folder, in place of the previous record."""
    files.write(folder / "state.json", json.dumps([asdict(process) for process in processes]), shared=True)


def taken(ports: Iterable[int]) -> list[int]:
    """The ports of 127.0.0.1, among `ports`, that a process listens on."""
    in_use = []
    for port in ports:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ports of ended processes do not count
            try:
                listener.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                in_use.append(port)
    return in_use


def end(processes: Sequence[Process]) -> None:
    """Send SIGTERM to each, the last started first; send SIGKILL to those that still run after END_SECONDS."""
    left = [process for process in reversed(processes) if alive(process)]
    for process in left:
        _signal(process, signal.SIGTERM)
    until(lambda: not any(map(alive, left)), END_SECONDS)
    for process in filter(alive, left):
        _signal(process, signal.SIGKILL)
    # Remove the zombies among this process's own children. Other processes' children are left to their parents.
    for process in processes:
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has ended in the meantime
        try:
            os.kill(process.pid, number)
        except PermissionError as error:
            raise LooplineError(f"{process.name} was started by another user: only that user can end it") from error
