"""The processes that `loopline up` starts once: what each is, and starting anew those that ended. See `parts.json`."""

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
    """A process. ready: the address that answers when it is, or empty. env: beside our own."""

    name: str
    command: list[str]
    address: str
    ready: str
    env: Mapping[str, str] | None = None


def supervisor(folder: Path) -> SupervisedProcess:
    """The process that starts the others anew, see `deploy.supervisor`."""
    return SupervisedProcess(SUPERVISOR, [sys.executable, "-m", "loopline.cli", "supervise", str(folder)], "", "")


def note(parts: Sequence[SupervisedProcess], folder: Path) -> None:
    """Write down which there should be."""
    files.write(folder / "parts.json", json.dumps([part._asdict() for part in parts]), shared=True)


def mend(folder: Path) -> list[str]:
    """Start those that should be there and are not; their names. A failure to start one is logged, and the next is tried."""
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
