"""The journal's Parquet parts, `<model>-<time>-<hash>.parquet`, in a folder or at any URL of fsspec. Writes are atomic."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterable, Sequence
from math import nan
from pathlib import Path
from typing import Any

from loopline.errors import LooplineError

FOLDER = "parts"


def local(place: str, copy: Path) -> Path:
    """The folder of the journal at `place`; if that is a URL of fsspec, the copy of the journal at `copy`, made once.

    Raises LooplineError if the URL cannot be read.
    """
    if "://" not in place:
        return Path(place)
    if not copy.exists():
        import fsspec

        partial = copy.with_name(f"{copy.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            remote, root = fsspec.core.url_to_fs(place)
            remote.get(f"{root.rstrip('/')}/", f"{partial}/", recursive=True)
        except (OSError, ValueError, ImportError) as error:
            raise LooplineError(f"the journal at {place} cannot be copied: {error}") from error
        partial.rename(copy)
    return copy


class Parts:
    """The parts in one folder or at one URL."""

    def __init__(self, url: str) -> None:
        """url: a folder, or for instance s3://bucket/journal. Raises LooplineError if it cannot be reached."""
        import fsspec

        try:
            self.fs, self.root = fsspec.core.url_to_fs(url)
            self.fs.makedirs(self.root, exist_ok=True)
        except (OSError, ValueError, ImportError) as error:
            raise LooplineError(f"{url} cannot store the journal's parts: {error}") from error

    def write(self, name: str, lines: Sequence[dict[str, Any]]) -> int:
        """Write these journal lines as one part; return its size in bytes. Raises OSError."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema(
            [
                ("id", pa.string()),
                ("time", pa.timestamp("us", tz="UTC")),
                ("model", pa.string()),
                ("version", pa.string()),
                ("status", pa.int16()),
                ("reason", pa.string()),
                ("image", pa.binary()),
                ("text", pa.string()),
                ("prediction", pa.string()),
                ("signals", pa.map_(pa.string(), pa.float64())),
            ]
        )
        rows = [
            line
            | {
                "time": int(line["time"] * 1e6),
                "image": base64.b64decode(line["image"]) if line.get("image") else None,
                "text": line.get("text"),
                "prediction": json.dumps(line["prediction"]),
                "signals": [(name, nan if value is None else value) for name, value in line["signals"].items()],
            }
            for line in lines
        ]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
        partial, path = f"{self.root}/{name}.partial", f"{self.root}/{name}"
        self.fs.pipe_file(partial, buffer.getvalue())
        self.fs.mv(partial, path)
        return buffer.tell()

    def read(self, name: str, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The part's rows with these ids, by id. Raises LooplineError if the part is missing or damaged."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        try:
            content = pa.BufferReader(self.fs.cat_file(f"{self.root}/{name}"))
            # read_table with filters is avoided: a thread of pyarrow's scanner may outlive it and abort the process.
            table = pq.ParquetFile(content).read(use_threads=False)
            mask = pc.is_in(table["id"], pa.array(list(ids), pa.string()))
        except (OSError, KeyError, pa.ArrowException) as error:
            raise LooplineError(f"the journal's part {self.root}/{name} cannot be read: {error}") from error
        return {row["id"]: row for row in table.filter(mask).to_pylist()}

    def remove(self, name: str) -> None:
        """Delete a part, if it exists."""
        if self.fs.exists(f"{self.root}/{name}"):
            self.fs.rm_file(f"{self.root}/{name}")
