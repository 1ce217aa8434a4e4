"""The supervisor: a process that starts anew what `loopline up` started and what ended since.

What there should be is in files: `parts.json` for what is started once, `fleet.json` for servers and the sentinel behind the gateway,
the state of a rollout for its controller.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from loopline import processes
from loopline.delivery import fleet, rollout
from loopline.errors import LooplineError

NAME = "supervisor"
SECONDS, LONGEST = 1.0, 16.0  # between two looks; what ends over and over is started anew ever less often
_log = logging.getLogger(__name__)


class Part(NamedTuple):
    """A process. ready: the address that answers when it is, or empty. env: beside our own."""

    name: str
    command: list[str]
    address: str
    ready: str
    env: Mapping[str, str] | None = None


def part(folder: Path) -> Part:
    """The supervisor itself."""
    return Part(NAME, [sys.executable, "-m", "loopline.cli", "supervise", str(folder)], "", "")


def note(parts: Sequence[Part], folder: Path) -> None:
    """What there should be, beside the fleet."""
    processes.write(folder / "parts.json", json.dumps([one._asdict() for one in parts]))


def mend(folder: Path = fleet.FOLDER) -> list[str]:
    """Start what should be there and is not; its names. What cannot be started is said in the log, and the rest goes on."""
    started = []
    with processes.locked(folder):
        there = processes.running(folder)
        for row in json.loads((folder / "parts.json").read_text(encoding="utf-8")):
            one = Part(**row)
            if one.name in {process.name for process in there}:
                continue
            started.append(one.name)
            try:
                there.append(processes.start(one.name, one.command, one.address, folder, one.env, again=True))
                processes.save(there, folder)
            except OSError as error:
                _log.error("%s: %s", one.name, error)
    for name, room in (("servers", fleet), ("rollout", rollout)):
        try:
            if room.mend(folder):
                started.append(name)
        except LooplineError as error:
            started.append(name)
            _log.error("%s", error)
    return started


def run(folder: Path, stop: threading.Event) -> None:
    """Look and mend until `stop`."""
    pause = SECONDS
    while not stop.wait(pause):
        if started := mend(folder):
            _log.warning("started anew: %s", ", ".join(started))
        pause = min(2 * pause, LONGEST) if started else SECONDS
        with suppress(ChildProcessError):  # bury those of ours that ended
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
