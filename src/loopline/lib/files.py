"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a name beside `path` to write to; at the end of the block that file becomes `path`, in place of an older one.

    After an error the file is removed, and `path` is as it was. That of a killed process stays until the next writer replaces it.
    shared: state that several processes write. Each has a file of its own, and it is on the disk before it is renamed.
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
    """Put text, as UTF-8, or bytes at `path`. See `replacing`."""
    with replacing(path, shared=shared) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
