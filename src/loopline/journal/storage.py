"""The journal's Parquet parts, in a folder or at any URL that fsspec knows: `<model>-<time>.parquet`, whole or not there."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Sequence
from math import nan
from typing import Any

from loopline.errors import LooplineError

FOLDER = "parts"


class Parts:
    """Where they are."""

    def __init__(self, url: str) -> None:
        """url: a folder or s3://bucket/journal, for instance. Raises LooplineError where it cannot be reached."""
        import fsspec

        try:
            self.fs, self.root = fsspec.core.url_to_fs(url)
            self.fs.makedirs(self.root, exist_ok=True)
        except (OSError, ValueError, ImportError) as error:
            raise LooplineError(f"{url} cannot keep the journal: {error}") from error

    def write(self, name: str, lines: Sequence[dict[str, Any]]) -> int:
        """A part of these journal lines; its bytes. Raises OSError."""
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
        found = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), found, compression="zstd")
        partial, whole = f"{self.root}/{name}.partial", f"{self.root}/{name}"
        self.fs.pipe_file(partial, found.getvalue())
        self.fs.mv(partial, whole)
        return found.tell()

    def read(self, name: str, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The rows with these ids, by id. Raises LooplineError where the part is gone or damaged."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        try:
            content = pa.BufferReader(self.fs.cat_file(f"{self.root}/{name}"))
            # Not read_table with its filters: a thread of pyarrow's scanner may outlive it and abort the process at its end.
            table = pq.ParquetFile(content).read(use_threads=False)
            wanted = pc.is_in(table["id"], pa.array(list(ids), pa.string()))
        except (OSError, KeyError, pa.ArrowException) as error:
            raise LooplineError(f"the journal's part {self.root}/{name} cannot be read: {error}") from error
        return {row["id"]: row for row in table.filter(wanted).to_pylist()}

    def remove(self, name: str) -> None:
        """One that is gone already is fine."""
        if self.fs.exists(f"{self.root}/{name}"):
            self.fs.rm_file(f"{self.root}/{name}")
