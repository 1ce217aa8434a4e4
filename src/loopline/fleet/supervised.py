"""The processes that `loopline up` starts once: their list in `parts.json`, and the restart of those that ended."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from loopline.lib import files, locks, processes

SUPERVISOR = "supervisor"
_log = logging.getLogger(__name__)


class SupervisedProcess(NamedTuple):
    """A process. ready: address that answers when the process is ready; empty: do not wait. env: additions to the environment."""

    name: str
    command: list[str]
    address: str
    ready: str
    env: Mapping[str, str] | None = None


def supervisor(folder: Path) -> SupervisedProcess:
    """The process that restarts the others, see `deploy.supervisor`."""
    return SupervisedProcess(SUPERVISOR, [sys.executable, "-m", "loopline.cli", "supervise", str(folder)], "", "")


def note(parts: Sequence[SupervisedProcess], folder: Path) -> None:
    """Write the list of processes that should run to `parts.json`."""
    files.write(folder / "parts.json", json.dumps([part._asdict() for part in parts]), shared=True)


def mend(folder: Path) -> list[str]:
    """Start the processes that should run and do not, and return their names. A failed start is logged, and the next is tried."""
    started = []
    with locks.held(folder / "lock"):
        running = processes.running(folder)
        for row in json.loads((folder / "parts.json").read_text(encoding="utf-8")):
            part = SupervisedProcess(**row)
            if part.name in {process.name for process in running}:
                continue
            started.append(part.name)
            try:
                running.append(processes.start(part.name, part.command, part.address, folder, part.env, again=True))
                processes.save(running, folder)
            except OSError as error:
                _log.error("%s: %s", part.name, error)
    return started
