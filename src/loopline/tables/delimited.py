r"""Read CSV and TSV line by line, so that a quote that is never closed costs only its own line.

In a TSV, quotes count only if they surround a complete cell; otherwise they are part of the text. With any other delimiter,
a broken quote makes a broken row. A lone \r is an ordinary character.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from loopline.errors import LooplineError
from loopline.tables.columns import normal

DELIMITERS = (",", ";", "\t", "|")
MOST_CELL = 1_000_000  # characters of one cell
# A cell over several lines may start with a stray quote; then each of its lines has the columns of a row. Evidence is
# this many such lines, by delimiter (a tab is rare in texts), or a value in each line that other rows have there too.
_MANY = {"\t": 5}
_MANY_OTHERS = 20
_MOST_VALUES = 1000  # remembered values of a column; a column with more values, or with a long one, is no evidence
_MOST_VALUE = 100  # characters of a remembered value
_RETURN = "\udc0d"  # stands for a lone \r, at which the csv module would end a row; decoded texts never have it
_TOO_LONG = "line of more than 64 MB"


class TableRow(NamedTuple):
    """A row of a table. number: its line or place, from 1. values: of the requested columns. problem: why there are none."""

    number: int
    values: Sequence[object] = ()
    problem: str | None = None


class _Feed:
    """The lines for the csv module. `taken` are those of the current row, which can be put back."""

    def __init__(self, lines: Iterator[str | None]) -> None:
        self._lines = lines
        self._waiting: deque[str | None] = deque()
        self.taken: list[str | None] = []
        self.number = 0  # number of the last taken line, from 1

    def __iter__(self) -> _Feed:
        return self

    def take(self) -> str | None:
        """Take the next line unchanged. Raises StopIteration at the end."""
        self.taken.append(self._waiting.popleft() if self._waiting else next(self._lines))
        self.number += 1
        return self.taken[-1]

    def __next__(self) -> str:
        line = self.take()
        if line is None:
            raise csv.Error(_TOO_LONG)
        body = line.removesuffix("\r")
        if "\r" in body:
            line = body.replace("\r", _RETURN) + line[len(body) :]
        return f"{line}\n"

    def peek(self) -> list[str | None]:
        """A list of the next line, which is empty at the end."""
        if not self._waiting:
            self._waiting.extend(itertools.islice(self._lines, 1))
        return [*itertools.islice(self._waiting, 1)]

    def put_back(self, start: int) -> None:
        """Put the lines of the current row back, from line `start` of the row on."""
        self._waiting.extendleft(reversed(self.taken[start:]))
        self.number -= len(self.taken) - start
        del self.taken[start:]


class Delimited:
    """The rows of a CSV or TSV file. The first row names the columns."""

    def __init__(
        self, lines: Iterator[str | None], fits: Callable[[Sequence[str]], bool], *, tabs: bool, name: str
    ) -> None:
        """Read the header. fits: whether the names of columns are suitable, which decides on the delimiter.

        tabs: whether to try the tab first, because the file is called a TSV. name: for messages. Raises LooplineError if lines
        end at a lone \\r, because the header would contain all rows.
        """
        csv.field_size_limit(MOST_CELL)
        self._feed = _Feed(lines)
        delimiters = ("\t", *DELIMITERS) if tabs else DELIMITERS
        self.delimiter, self.names = self._header(fits, self._declared() or delimiters)
        self._values: list[set[str] | None] = [set() for _ in self.names]
        if any("\r" in column.strip() for column in self.names):
            raise LooplineError(rf"{name}: its lines end at \r alone: save it with lines that end at \n or \r\n")

    def _declared(self) -> str:
        """The delimiter of a first line like `sep=;`, as Excel writes it; "" without such a line."""
        line = next(iter(self._feed.peek()), None) or ""
        declared = re.fullmatch(r"sep=(.)\r?", line, re.IGNORECASE)
        if declared:
            self._feed.take()
        return declared[1] if declared else ""

    def _header(self, fits: Callable[[Sequence[str]], bool], delimiters: Sequence[str]) -> tuple[str, list[str]]:
        """The first delimiter whose names fit, else the one with the most names; and the names."""
        candidates = []
        for delimiter in delimiters:
            names = self._first(delimiter)
            candidates.append((delimiter, names, len(self._feed.taken)))
            self._feed.put_back(0)
            if fits(names):
                chosen = candidates[-1]
                break
        else:
            chosen = max(candidates, key=lambda candidate: len(candidate[1]))
        for _ in range(chosen[2]):
            self._feed.take()
        return chosen[:2]

    def _first(self, delimiter: str) -> list[str]:
        """The names in the first row that is not empty."""
        self._feed.taken.clear()
        names: list[str] = []
        try:
            while not names:
                names = next(csv.reader(self._feed, delimiter=delimiter, strict=True))
        except StopIteration:
            return []
        except csv.Error:
            self._feed.put_back(1)
            first = self._feed.taken[0]
            return [] if first is None else first.removesuffix("\r").split(delimiter)
        return [name.replace(_RETURN, "\r") for name in names]

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        """Yield the cells of those columns, or the problem, for each row that is not empty.

        In a table of one column, an empty line before another row is an empty cell.
        """
        places = [self.names.index(column) for column in columns]
        feed, reader = self._feed, csv.reader(self._feed, delimiter=self.delimiter, strict=True)
        empty: list[TableRow] = []
        while True:
            feed.taken.clear()
            problem = None
            try:
                cells = next(reader)
                if self._swallowed():
                    raise csv.Error
            except StopIteration:
                return
            except csv.Error as error:
                problem, cells = self._alone(str(error))
            number = feed.number - len(feed.taken) + 1
            if problem is None and not cells:
                empty += [TableRow(number, [""] * len(places))] if len(self.names) == 1 else []
                continue
            yield from empty
            empty.clear()
            if problem := problem or self._misplaced(cells):
                yield TableRow(number, problem=problem)
            else:
                self._remember(cells)
                yield TableRow(number, [cells[place].replace(_RETURN, "\r") for place in places])

    def _swallowed(self) -> bool:
        """Whether the current row is in fact several rows, joined by a stray quote at the start of a cell."""
        width = len(self.names)
        rows = [(line or "").removesuffix("\r").split(self.delimiter) for line in self._feed.taken]
        if width < 2 or len(rows) < 2 or any(len(row) != width for row in rows):
            return False
        if len(rows) >= _MANY.get(self.delimiter, _MANY_OTHERS):
            return True
        return any(values and all(row[place] in values for row in rows) for place, values in enumerate(self._values))

    def _remember(self, cells: list[str]) -> None:
        """Remember the values of each column that has few short values, as a column of labels has."""
        for place, (value, values) in enumerate(zip(cells, self._values, strict=True)):
            if values is None or not value:
                continue
            values.add(value)
            if len(values) > _MOST_VALUES or len(value) > _MOST_VALUE:
                self._values[place] = None

    def _alone(self, error: str) -> tuple[str | None, list[str]]:
        """The problem of the current row's first line, or its cells. The other lines are put back."""
        unclosed = len(self._feed.taken) > 1 or "end of data" in error
        self._feed.put_back(1)
        line = self._feed.taken[0]
        if line is None:
            return _TOO_LONG, []
        if self.delimiter == "\t":
            return None, [_unquoted(cell) for cell in line.removesuffix("\r").split("\t")]
        if unclosed:
            return "quote that is not closed", []
        return "text too long" if "field larger" in error else "text behind a closing quote", []

    def _misplaced(self, cells: list[str]) -> str | None:
        if len(cells) != len(self.names):
            return f"row with {'more' if len(cells) > len(self.names) else 'fewer'} columns than the header"
        again = len(cells) > 1 and all(
            normal(cell.removeprefix("\ufeff")) == normal(name) for cell, name in zip(cells, self.names, strict=True)
        )
        return "header again" if again else None  # as in two files that were joined


def _unquoted(cell: str) -> str:
    inner = cell[1:-1]
    whole = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if whole else cell
