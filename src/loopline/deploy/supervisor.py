"""The supervisor: a process that restarts processes of `loopline up` that ended.

Files say which processes should run: `parts.json` those that are started once, `fleet.json` the servers and the sentinel behind
the gateway, and the state of a rollout its controller.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

from loopline.errors import LooplineError
from loopline.fleet import members, supervised
from loopline.rollout import controller

SECONDS, LONGEST = 1.0, 16.0  # shortest and longest pause between two looks; each restart doubles the pause
_log = logging.getLogger(__name__)


def mend(folder: Path = members.FOLDER) -> list[str]:
    """Start the processes that should run and do not, and return their names. A failed start is logged, and the next is tried."""
    started = supervised.mend(folder)
    for name, module in (("servers", members), ("rollout", controller)):
        try:
            if module.mend(folder):
                started.append(name)
        except LooplineError as error:
            started.append(name)
            _log.error("%s", error)
    return started


def run(folder: Path, stop: threading.Event) -> None:
    """Call `mend` again and again until `stop` is set."""
    pause = SECONDS
    while not stop.wait(pause):
        if started := mend(folder):
            _log.warning("restarted: %s", ", ".join(started))
        pause = min(2 * pause, LONGEST) if started else SECONDS
        with suppress(ChildProcessError):  # reap child processes that ended
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
