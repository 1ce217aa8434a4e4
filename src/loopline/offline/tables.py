"""Texts to predict: the rows of a CSV, TSV, JSON Lines or Parquet file, one at a time. A row that cannot be read keeps its place."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import IO, Any

import orjson

from loopline.errors import LooplineError
from loopline.offline.sources import MOST_BYTES, Item, Source, guarded, lines, opened, plain, reason
from loopline.serving.model import MOST_TEXT

COLUMN = "text"
KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz")


def suffix(url: str) -> str:
    """`.csv` of `s3://bucket/Names.CSV.gz`."""
    name = url.rpartition("/")[2].lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return f".{name.rpartition('.')[2]}" if "." in name else ""


def texts(url: str, column: str = COLUMN) -> Source:
    """The rows of a CSV, TSV, JSON Lines or Parquet file. Raises LooplineError where it cannot be read or has no such column."""
    kind = suffix(url)
    if kind not in KINDS:
        raise LooplineError(f"{url}: a text model wants a file ending in {', '.join(KINDS)}")
    if kind == ".parquet":
        return _parquet(opened(url, compression=None), url, column)
    if kind in (".csv", ".tsv"):
        return Source(guarded(_checked(_csv(opened(url), url, column, "\t" if kind == ".tsv" else ",")), url))
    return Source(guarded(_checked(_jsonl(opened(url), url, column)), url))


def _checked(rows: Iterator[Any]) -> Iterator[Item]:
    """An item for each row: a text, a value that is none, or the error that stands in its place."""
    for number, text in enumerate(rows):
        if isinstance(text, Exception):
            yield Item(number, error=reason(text).removeprefix("LooplineError: "))
        elif not isinstance(text, str):
            yield Item(number, error="no text" if text is None else f"not a text but {text!r:.60}")
        elif len(text) > MOST_TEXT:
            yield Item(number, error=f"{len(text)} characters, at most {MOST_TEXT} are accepted")
        elif not text.isascii() and plain(text) != text:
            yield Item(number, error="not UTF-8")
        else:
            yield Item(number, text)


def _column(columns: Sequence[str], column: str, url: str) -> int:
    if column not in columns:
        there = ", ".join(map(repr, columns)) or "none"
        raise LooplineError(f"{url} has no column {column!r}: it has {there:.300}; name one with --column")
    return columns.index(column)


def _csv(file: IO[bytes], url: str, column: str, mark: str) -> Iterator[Any]:
    csv.field_size_limit(MOST_TEXT * 4)  # an open quote must not take in the rest of the file
    with io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text:
        rows = csv.reader(text, delimiter=mark)
        head = next(rows, [])
        place = _column(head, column, url)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield error
                continue
            if not row:
                continue  # an empty line
            if len(row) != len(head):
                yield LooplineError(f"{len(row)} columns in place of {len(head)}")
            else:
                yield row[place]


def _jsonl(file: IO[bytes], url: str, column: str) -> Iterator[Any]:
    seen = False
    with file:
        for line in lines(file):
            if line is None:
                yield LooplineError(f"a line of more than {MOST_BYTES >> 20} MB")
                continue
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except ValueError as error:
                yield LooplineError(f"not JSON: {error}")
                continue
            if not isinstance(row, dict):
                yield LooplineError("not a JSON object")
            elif column in row:
                seen = True
                yield row[column]
            else:
                if not seen:
                    _column(list(row), column, url)
                yield LooplineError(f"no {column!r}")


def _parquet(file: IO[bytes], url: str, column: str) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise LooplineError(f"{url} is not a Parquet file: {error}") from error
    _column(parquet.schema_arrow.names, column, url)

    def rows() -> Iterator[Any]:
        with file:
            for batch in parquet.iter_batches(batch_size=1024, columns=[column]):
                yield from batch.column(0).to_pylist()

    return Source(guarded(_checked(rows()), url), parquet.metadata.num_rows)
