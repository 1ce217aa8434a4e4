"""What a batch prediction writes: parts beside the output while it runs, then the output, whole or not at all.

OUTPUT.partial/part-00000.parquet ...    each written under another name and renamed, with what it was made from in its metadata
OUTPUT                                   the parts joined, likewise; Parquet, CSV or JSON Lines by its suffix
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from loopline.batch.inputs import locate
from loopline.errors import LooplineError

KEY = b"loopline"
KINDS = (".parquet", ".csv", ".jsonl")


def schema(*, image: bool, columns: Mapping[str, Any]) -> pa.Schema:
    """Columns of the output. id: row number or path. columns: a task's `batch_columns`. error: why there is no answer, else null."""
    answer = [(name, _type(kind)) for name, kind in columns.items()]
    return pa.schema([("id", pa.string() if image else pa.int64()), *answer, ("error", pa.string())])


def _type(kind: Any) -> pa.DataType:
    if isinstance(kind, list):
        return pa.list_(pa.struct([(name, _type(inner)) for name, inner in kind[0].items()]))
    return pa.type_for_alias(kind)


class Output:
    """The output at a path or URL, and its parts."""

    def __init__(self, url: str, schema: pa.Schema) -> None:
        """Raises LooplineError where such an output cannot be written."""
        self.url, self.schema = url, schema
        self.kind = PurePosixPath(url).suffix.lower()
        if self.kind not in KINDS:
            raise LooplineError(f"{url}: the output ends in {', '.join(KINDS)}")
        self.fs, self.path = locate(url)
        self.folder = f"{self.path}.partial"
        with self._told():
            if self.fs.isdir(self.path):
                raise LooplineError(f"{url} is a folder: name a file")
            self._make_folder()
            self.fs.invalidate_cache()

    def part(self, number: int) -> str:
        """Its path."""
        return f"{self.folder}/part-{number:05}.parquet"

    def facts(self, number: int) -> dict[str, Any] | None:
        """What the part was made from; None where there is no whole part."""
        try:
            with self.fs.open(self.part(number), "rb") as file:
                found = pq.read_schema(file)
                facts: dict[str, Any] = json.loads((found.metadata or {})[KEY])
        except (OSError, ValueError, KeyError):  # pyarrow's errors are ValueErrors
            return None
        return facts if found.remove_metadata().equals(self.schema) else None

    def write_part(self, number: int, rows: Iterable[dict[str, Any]], facts: dict[str, Any]) -> None:
        """Write a part of at least one row: whole or not at all. What a row lacks is null."""
        table = _table(rows, self.schema).replace_schema_metadata({KEY: json.dumps(facts)})
        with self._atomic(self.part(number)) as file:
            pq.write_table(table, file, compression="zstd")

    def tables(self, count: int) -> Iterator[pa.Table]:
        """The first `count` parts."""
        for number in range(count):
            with self.fs.open(self.part(number), "rb") as file:
                # read_table imports pandas, see `_table`. Bytes and one thread: a thread of pyarrow's that holds a file of Python's
                # may outlive it, and then aborts the process at its end.
                content = pa.BufferReader(file.read())
            yield pq.ParquetFile(content).read(use_threads=False).replace_schema_metadata(None)

    def join(self, count: int, facts: dict[str, Any], look: Callable[[pa.Table], None]) -> None:
        """Join the first `count` parts to the output, then remove all. look: sees each part's table."""
        with self._atomic(self.path) as file, _writer(self.kind, file, self.schema, facts) as write:
            for table in self.tables(count):
                look(table)
                write(table)
        with self._told():
            self.fs.rm(self.folder, recursive=True)

    def restart(self) -> None:
        """Remove the parts."""
        with self._told():
            self.fs.rm(self.folder, recursive=True)
            self._make_folder()

    def _make_folder(self) -> None:
        if isinstance(self.fs, LocalFileSystem):
            self.fs.makedirs(self.folder, exist_ok=True)
        elif not self.fs.isdir(self.folder):
            self.fs.mkdir(self.folder, create_parents=False)  # never a bucket that was not there

    @contextmanager
    def _atomic(self, path: str) -> Iterator[IO[bytes]]:
        """A file that appears at `path` when it is whole."""
        partial = f"{self.folder}/{os.getpid()}.writing"
        with self._told():
            with self.fs.open(partial, "wb") as file:
                yield file
            self.fs.mv(partial, path)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, NotImplementedError, pa.ArrowException) as error:
            raise LooplineError(f"{self.url} cannot be written: {error}") from error


@contextmanager
def _writer(
    kind: str, file: IO[bytes], schema: pa.Schema, facts: dict[str, Any]
) -> Iterator[Callable[[pa.Table], None]]:
    if kind == ".parquet":
        with pq.ParquetWriter(file, schema.with_metadata({KEY: json.dumps(facts)}), compression="zstd") as parquet:
            yield parquet.write_table
    elif kind == ".csv":
        flat = pa.schema([(f.name, pa.string() if pa.types.is_list(f.type) else f.type) for f in schema])
        with pyarrow.csv.CSVWriter(file, flat) as lines:
            yield lambda table: lines.write_table(_flat(table, flat))
    else:
        yield lambda table: file.writelines(orjson.dumps(row) + b"\n" for row in table.to_pylist())


def _flat(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """CSV has no lists: they become JSON."""
    lists = [field.name for field in table.schema if pa.types.is_list(field.type)]
    if not lists:
        return table
    rows = table.to_pylist()
    for row in rows:
        row |= {name: orjson.dumps(row[name]).decode() for name in lists if row[name] is not None}
    return _table(rows, schema)


def _table(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Through JSON: pyarrow's own way from lists imports pandas wherever that is installed, which takes a second."""
    data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    return pyarrow.json.read_json(
        pa.BufferReader(data),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data)),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
    )
