"""Segments: files of JSON lines that servers write for the collector; see `server.journal_writer`."""

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
    """The closed segments, the oldest first. Segments that a killed server left open are closed before."""
    for path in sorted((folder / OPEN).glob("*.jsonl")):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a living writer holds the lock
                path.rename(folder / CLOSED / path.name)
        except (BlockingIOError, FileNotFoundError):
            continue
    return sorted((folder / CLOSED).glob("*.jsonl"))


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The segment's lines; a partial line of a killed server is skipped. Raises OSError."""
    for line in path.read_bytes().split(b"\n"):
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            yield content


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write a closed segment, for labels imported from a file. The write is atomic."""
    path = folder / CLOSED / f"{time.time_ns():020}-{os.getpid()}.jsonl"
    files.write(path, "".join(json.dumps(row) + "\n" for row in rows))
