"""The output of a batch prediction: parts beside it while the run goes on, then the complete output or none.

OUTPUT.partial/part-00000.parquet ...    each with metadata of its inputs
OUTPUT                                   the joined parts: Parquet, CSV or JSON Lines by its suffix

Every file is written under another name and then renamed, so that it is never incomplete.
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

KEY = b"loopline"  # of the metadata
KINDS = (".parquet", ".csv", ".jsonl")


def schema(*, image: bool, columns: Mapping[str, Any]) -> pa.Schema:
    """The output's schema: `id` (row number or path), the task's columns, and `error` (null if there is an answer)."""
    answer = [(name, _type(kind)) for name, kind in columns.items()]
    return pa.schema([("id", pa.string() if image else pa.int64()), *answer, ("error", pa.string())])


def _type(kind: Any) -> pa.DataType:
    if isinstance(kind, list):
        return pa.list_(pa.struct([(name, _type(inner)) for name, inner in kind[0].items()]))
    return pa.type_for_alias(kind)


class Output:
    """The output at a path or URL, and its parts."""

    def __init__(self, url: str, schema: pa.Schema) -> None:
        """Make the folder of the parts. Raises LooplineError if the output cannot be written."""
        self.url, self.schema = url, schema
        self.kind = PurePosixPath(url).suffix.lower()
        if self.kind not in KINDS:
            raise LooplineError(f"{url}: the output's name must end in {', '.join(KINDS)}")
        self.fs, self.path = locate(url)
        self.folder = f"{self.path}.partial"
        with self._told():
            if self.fs.isdir(self.path):
                raise LooplineError(f"{url} is a folder: name a file")
            self._make_folder()
            self.fs.invalidate_cache()

    def part(self, number: int) -> str:
        """The path of a part. number: from 0."""
        return f"{self.folder}/part-{number:05}.parquet"

    def facts(self, number: int) -> dict[str, Any] | None:
        """The facts that `write_part` stored with a part; None if there is no valid part."""
        try:
            with self.fs.open(self.part(number), "rb") as file:
                stored = pq.read_schema(file)
                facts: dict[str, Any] = json.loads((stored.metadata or {})[KEY])
        except (OSError, ValueError, KeyError):  # pyarrow's errors are ValueErrors
            return None
        return facts if stored.remove_metadata().equals(self.schema) else None

    def any_facts(self) -> dict[str, Any] | None:
        """The facts of the first valid part; None if there is none. Parts may be written in any order."""
        numbers = sorted(int(PurePosixPath(name).stem[5:]) for name in self.fs.glob(f"{self.folder}/part-*.parquet"))
        return next(filter(None, map(self.facts, numbers)), None)

    def write_part(self, number: int, rows: Iterable[dict[str, Any]], facts: dict[str, Any]) -> None:
        """Write a part of at least one row, completely or not at all. A missing value is null. facts: see `facts`."""
        table = _table(rows, self.schema).replace_schema_metadata({KEY: json.dumps(facts)})
        with self._atomic(self.part(number)) as file:
            pq.write_table(table, file, compression="zstd")

    def tables(self, count: int) -> Iterator[pa.Table]:
        """Yield the first `count` parts."""
        for number in range(count):
            with self.fs.open(self.part(number), "rb") as file:
                # Not read_table, which imports pandas, see `_table`. From bytes and in one thread: a thread of pyarrow that
                # holds a Python file may outlive the interpreter and then abort the process.
                content = pa.BufferReader(file.read())
            yield pq.ParquetFile(content).read(use_threads=False).replace_schema_metadata(None)

    def join(self, count: int, facts: dict[str, Any], look: Callable[[pa.Table], None]) -> None:
        """Join the first `count` parts to the output, then remove all parts. look: called with each part's table."""
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
            self.fs.mkdir(self.folder, create_parents=False)  # so that no bucket is created

    @contextmanager
    def _atomic(self, path: str) -> Iterator[IO[bytes]]:
        """A file to write, which appears at `path` once it is complete."""
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
    """A table for CSV, with lists as JSON."""
    lists = [field.name for field in table.schema if pa.types.is_list(field.type)]
    if not lists:
        return table
    rows = table.to_pylist()
    for row in rows:
        row |= {name: orjson.dumps(row[name]).decode() for name in lists if row[name] is not None}
    return _table(rows, schema)


def _table(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table of rows, by way of JSON: pyarrow's own conversion imports pandas if it is installed, which takes a second."""
    data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    return pyarrow.json.read_json(
        pa.BufferReader(data),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data)),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
    )
