"""Texts to predict: the rows of a table, one at a time. A row that cannot be read becomes an item with an error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO

from loopline.batch.inputs import BatchInput, Item, guarded, opened, told
from loopline.errors import LooplineError
from loopline.server.model import MOST_TEXT
from loopline.tables import table_reader
from loopline.tables.columns import TEXT, Unreadable, cell, match
from loopline.tables.delimited import TableRow

COMPRESSED = (".gz", ".bz2", ".xz")


def unpacked(url: str) -> str:
    """The name of a file once unpacked: `Names.CSV` for `s3://bucket/Names.CSV.gz`."""
    name = PurePosixPath(url.rpartition("/")[2])
    return name.stem if name.suffix.lower() in COMPRESSED else name.name


def texts(url: str, column: str | None = None) -> BatchInput:
    """The rows of a table. column: the column of the texts; by default the first that has one of the names in `columns.TEXT`.

    Raises LooplineError if the table cannot be read or has no such column.
    """
    name = unpacked(url)
    if table_reader.kind(name) not in table_reader.KINDS:
        raise LooplineError(f"{url}: a text model needs a table, whose name ends in {', '.join(table_reader.KINDS)}")

    def choose(columns: Sequence[str]) -> Sequence[str] | None:
        chosen = column if column in columns else match(columns, TEXT if column is None else [column])
        return None if chosen is None else [chosen]

    file = opened(url)
    try:
        with told(url):
            table = table_reader.read(file, url, name, choose)
        if table.chosen is None:
            names = ", ".join(map(repr, table.columns)) or "none"
            raise LooplineError(
                f"{url} has no column {column or TEXT[0]!r}: it has {names:.300}; name one with --column"
            )
    except BaseException:  # also Ctrl-C: close the file in any case
        file.close()
        raise
    return BatchInput(guarded(_items(file, table.rows), url), table.total)


def _items(file: IO[bytes], rows: Iterator[TableRow]) -> Iterator[Item]:
    """Yield an item for each row: a text or an error."""
    with file:
        for number, row in enumerate(rows):
            try:
                yield Item(number, _text(row))
            except Unreadable as error:
                yield Item(number, error=str(error))


def _text(row: TableRow) -> str:
    if row.problem is not None:
        raise Unreadable(row.problem)
    text = cell(row.values[0])
    if text is None:
        raise Unreadable("no text")
    if len(text) > MOST_TEXT:
        raise Unreadable(f"{len(text)} characters, at most {MOST_TEXT} are accepted")
    return text
