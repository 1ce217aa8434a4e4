"""Atomic writes: a file is replaced completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to; at the end of the block that file replaces `path`.

    After an error the new file is removed, and `path` is unchanged. If the process is killed, its partial file stays until the next
    writer replaces it. shared: for a file that several processes write; each has its own partial file, which is synced to the disk
    before it is renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if shared else f"{path.name}.partial")
    try:
        yield partial
        if shared:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write(path: Path, content: str | bytes, *, shared: bool = False) -> None:
    """Write bytes, or text as UTF-8, to `path`. See `replacing`."""
    with replacing(path, shared=shared) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
