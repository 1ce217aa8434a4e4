"""Tables of texts: CSV, TSV, JSON Lines or Parquet with a column of texts, one of labels, and perhaps one of splits."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from loopline.data.formats.common import (
    Folder,
    Format,
    broken,
    decode_text,
    head,
    lines,
    split_of_file,
    split_of_folder,
    suffix,
)
from loopline.data.raw import RawSample

# The first that a table has counts, so the more telling names come first.
TEXT = (
    "text",
    "sentence",
    "content",
    "review",
    "comment",
    "tweet",
    "message",
    "document",
    "body",
    "utterance",
    "question",
    "headline",
    "description",
    "title",
)
LABEL = (
    "label_text",
    "label_name",
    "label",
    "labels",
    "class",
    "target",
    "category",
    "sentiment",
    "language",
    "lang",
    "intent",
    "topic",
    "emotion",
    "polarity",
    "y",
)
SPLIT = ("split", "subset", "partition", "set")
_DELIMITERS = (",", ";", "\t", "|")
Row = tuple[int, Mapping[str, Any] | None]  # number of the line or row; None: it is broken


def pick(columns: list[str]) -> tuple[str, str, str | None] | None:
    """The columns of texts, labels and splits (if any) among `columns`; None where there are no texts or labels."""
    lower = {str(column).strip().strip('"').lower(): column for column in reversed(columns)}
    text, label, split = (
        next((lower[name] for name in names if name in lower), None) for names in (TEXT, LABEL, SPLIT)
    )
    return (text, label, split) if text is not None and label is not None else None


def _csv_delimiter(path: Path) -> str:
    first = next(iter(head(path)), "")
    fitting = [mark for mark in _DELIMITERS if pick(next(csv.reader([first], delimiter=mark), []))]
    return fitting[0] if fitting else ","


def _csv(path: Path) -> Iterator[Row]:
    # csv gets lines that end in \n alone: the csv module would take no other end either, but Python's files would.
    reader = csv.reader(io.StringIO(decode_text(path.read_bytes()), newline="\n"), delimiter=_csv_delimiter(path))
    names = next(reader)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield reader.line_num, None
        else:
            if row:
                yield reader.line_num, dict(zip(names, row, strict=True)) if len(row) == len(names) else None


def _tsv(path: Path) -> Iterator[Row]:
    """One row a line. Quotes are text, but for those around a whole cell whose inner quotes are doubled."""
    rows = enumerate(lines(path.read_bytes()), 1)
    names = [_unquoted(cell) for cell in next(rows)[1].split("\t")]
    for number, line in rows:
        cells = [_unquoted(cell) for cell in line.split("\t")]
        if line:
            yield number, dict(zip(names, cells, strict=True)) if len(cells) == len(names) else None


def _unquoted(cell: str) -> str:
    inner = cell[1:-1]
    whole = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if whole else cell


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines(path.read_bytes()), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield number, row if isinstance(row, dict) else None


def _json(path: Path) -> Iterator[Row]:
    """An array of objects; else JSON Lines under another name."""
    try:
        rows = json.loads(decode_text(path.read_bytes()))
    except (ValueError, RecursionError):
        rows = None
    if not isinstance(rows, list):
        yield from _jsonl(path)
        return
    for number, row in enumerate(rows, 1):
        yield number, row if isinstance(row, dict) else None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    chosen = [name for name in pick(file.schema_arrow.names) or () if name]
    names = _huggingface_names(file.schema_arrow.metadata)
    number = 0
    for batch in file.iter_batches(columns=chosen):
        for row in batch.to_pylist():
            number += 1
            for column, classes in names.items():
                if isinstance(row.get(column), int) and 0 <= row[column] < len(classes):
                    row[column] = classes[row[column]]
            yield number, row


def _huggingface_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Column -> class names, which the `datasets` library leaves in a file's metadata beside columns of numbers."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: list(entry["names"]) for name, entry in features.items() if "names" in entry}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".tab": _tsv,
    ".txt": _tsv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
}


def columns(path: Path) -> list[str]:
    """The names of a table's columns; [] where it has none that could be read."""
    kind = suffix(path.name)
    try:
        if kind == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_schema(path).names)
        if kind == ".csv":
            return next(csv.reader(head(path)[:1], delimiter=_csv_delimiter(path)), [])
        if kind in (".jsonl", ".ndjson", ".json"):
            return list(next((row for _, row in _READERS[kind](path) if row), {}))
        return [_unquoted(cell) for cell in next(iter(head(path)), "").split("\t")]
    except (OSError, ValueError, csv.Error):  # pyarrow's errors are ValueErrors
        return []


def has_columns(folder: Folder, name: str) -> bool:
    """Whether the file is a table with texts and labels."""
    return suffix(name) in _READERS and pick(columns(folder.root / name)) is not None


def _read(folder: Folder) -> Iterator[RawSample]:
    for name in folder.suffixed(set(_READERS)):
        found = columns(folder.root / name)
        chosen = pick(found)
        if chosen is None:
            yield broken(name, "table without a column of texts and one of labels")
            continue
        text, label, split = chosen
        published = split_of_file(name)
        for number, row in _READERS[suffix(name)](folder.root / name):
            where = f"{name}:{number}"
            if row is None:
                yield broken(where, "broken row", split=published)
                continue
            own = _cell(row.get(split)) if split else None
            at = split_of_folder(own) if own else published
            if own and at is None:
                yield broken(where, "unknown name of a split")
            else:
                yield RawSample(where, None, _cell(row.get(text)) or "", _cell(row.get(label)), None, at)


def _cell(value: Any) -> str | None:
    """A cell as text: 1.0 and 1 are the same class, true and false are written as in JSON, NaN is nothing."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    return str(value) if isinstance(value, int) else None


TABLES = Format(
    name="a table of texts",
    tasks=frozenset({"text"}),
    layout="CSV, TSV, JSON Lines or Parquet with the columns text (or sentence, content, review, ...) and "
    "label (or class, target, category, ...); optionally split; or train.csv, val.csv, test.csv",
    detect=lambda folder: any(has_columns(folder, name) for name in folder.files),
    read=_read,
)
