"""The lines that servers wrote: see `server.journal_writer`."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loopline.lib import files

OPEN, CLOSED = "open", "closed"


def closed(folder: Path) -> list[Path]:
    """Segments that may be read, the oldest first; those that a killed server left open are among them from now on."""
    for path in sorted((folder / OPEN).glob("*.jsonl")):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its writer holds the lock as long as it lives
                path.rename(folder / CLOSED / path.name)
        except (BlockingIOError, FileNotFoundError):
            continue
    return sorted((folder / CLOSED).glob("*.jsonl"))


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Its lines; the half one that a killed server left is no line. Raises OSError."""
    for line in path.read_bytes().split(b"\n"):
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            yield content


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """A segment of our own: labels that came by file. Whole or not at all."""
    path = folder / CLOSED / f"{time.time_ns():020}-{os.getpid()}.jsonl"
    files.write(path, "".join(json.dumps(row) + "\n" for row in rows))
