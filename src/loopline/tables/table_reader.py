"""Open a table of any kind and read the required columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from loopline.errors import LooplineError
from loopline.tables.columns import normal
from loopline.tables.delimited import Delimited, TableRow
from loopline.tables.encoding import lines
from loopline.tables.parquet import Parquet
from loopline.tables.records import Records

TABS = (".tsv", ".tab", ".txt")
JSON = (".jsonl", ".ndjson", ".json")
KINDS = (".csv", *TABS, *JSON, ".parquet")


@dataclass(frozen=True)
class Table:
    """A table: the names of all its `columns`, and the `rows` with the values of the `chosen` ones.

    chosen: None if the table lacks a required column; then there are no rows. It is empty for JSON without any object,
    where each row is a problem. total: the number of rows, if known beforehand.
    """

    columns: list[str]
    chosen: Sequence[str] | None
    rows: Iterator[TableRow]
    total: int | None = None


def kind(name: str) -> str:
    """The suffix of a file's name in lower case with its dot, which decides how the file is read."""
    return PurePosixPath(name).suffix.lower()


def read(file: IO[bytes], path: str, name: str, choose: Callable[[Sequence[str]], Sequence[str] | None]) -> Table:
    """Read the table in an open file. path: for messages. name: ends in one of KINDS.

    choose: returns the columns to read among the table's columns, or None if a required one is missing. Raises LooplineError
    if the file is damaged or two columns have a chosen name; this may happen only while the rows are read.
    """

    def fits(names: Sequence[str]) -> bool:
        return choose(names) is not None

    suffix = kind(name)
    table: Parquet | Records | Delimited
    if suffix == ".parquet":
        table = Parquet(file, name=path)
    elif suffix in JSON:
        table = Records(lines(file), fits, name=path)
    else:
        table = Delimited(lines(file), fits, tabs=suffix in TABS, name=path)
    no_object = isinstance(table, Records) and not table.names
    chosen = [] if no_object else choose(table.names)
    rows = iter(()) if chosen is None else _rows(table, chosen, path)
    return Table(table.names, chosen, rows, table.total if isinstance(table, Parquet) else None)


def _rows(table: Parquet | Records | Delimited, chosen: Sequence[str], path: str) -> Iterator[TableRow]:
    # The keys of JSON come from many records, which may write a key in different ways, so they are not counted.
    names = Counter() if isinstance(table, Records) else Counter(map(normal, table.names))
    if several := [column for column in chosen if names[normal(column)] > 1]:
        raise LooplineError(f"{path} has several columns called {several[0].strip()!r}: keep or rename all but one")
    yield from table.rows(chosen)
