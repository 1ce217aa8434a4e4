"""The supervisor: a process that starts anew what `loopline up` started and what ended since.

What there should be is in files: `parts.json` for what is started once, `fleet.json` for servers and the sentinel behind the gateway,
the state of a rollout for its controller.
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

SECONDS, LONGEST = 1.0, 16.0  # between two looks; what ends over and over is started anew ever less often
_log = logging.getLogger(__name__)


def mend(folder: Path = members.FOLDER) -> list[str]:
    """Start what should be there and is not; its names. What cannot be started is said in the log, and the rest goes on."""
    started = supervised.mend(folder)
    for name, room in (("servers", members), ("rollout", controller)):
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
