"""Read JSON Lines, or a list of JSON objects one object at a time."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from loopline.errors import LooplineError
from loopline.tables.delimited import TableRow

LEAST_RECORDS = 100  # records whose keys are the columns
MOST_RECORDS = 10_000  # most records that are searched for the required columns
MOST_RECORD = 64 << 20  # characters of one record of a list
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
Record = tuple[int, dict[str, Any] | str]  # number of the line or place, from 1; the record or its problem


class Records:
    """The records of a JSON file. The keys of the first records are the columns."""

    def __init__(self, lines: Iterator[str | None], fits: Callable[[Sequence[str]], bool], *, name: str) -> None:
        """Read the first records until there are enough and their keys fit. Raises LooplineError, as `rows` does."""
        self._name, self._records = name, _records(lines, name)
        self._first: list[Record] = []
        names: dict[str, None] = {}
        for record in itertools.islice(self._records, MOST_RECORDS):
            self._first.append(record)
            if isinstance(record[1], dict):
                names.update(dict.fromkeys(record[1]))
            if len(self._first) >= LEAST_RECORDS and fits(list(names)):
                break
        self.names = list(names)

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        """Yield for each record the values of those columns, None for a missing one, or the record's problem."""
        first, self._first = self._first, []
        record = first[0][1] if len(first) == 1 else None
        if isinstance(record, dict) and _whole_columns([record.get(column) for column in columns]):
            raise LooplineError(
                f"{self._name} has columns in place of records: write a list of objects, one a row "
                "(pandas: to_json(orient='records'))"
            )
        for number, record in itertools.chain(first, self._records):
            if isinstance(record, str):
                yield TableRow(number, problem=record)
            elif not columns:  # as in a file of {} and broken records
                yield TableRow(number, problem="JSON object without a required column")
            else:
                yield TableRow(number, [record.get(column) for column in columns])


def _whole_columns(values: list[Any]) -> bool:
    """Whether a record's values are columns, as pandas writes them: objects with the same keys, or lists of one length."""
    if values and all(isinstance(value, dict) and value for value in values):
        keys = {tuple(value) for value in values}
        return len(keys) == 1 and (len(values) > 1 or all(key.isdecimal() for key in keys.pop()))
    lengths = {len(value) if isinstance(value, list) else 0 for value in values}
    return len(lengths) == 1 and lengths != {0}


def _records(lines: Iterator[str | None], name: str) -> Iterator[Record]:
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line is None or line.strip())
    start = list(itertools.islice(numbered, 1))
    is_list = any((line or "").lstrip().startswith("[") for _, line in start)
    lines_read = itertools.chain(start, numbered)
    return _List((line for _, line in lines_read), name).records() if is_list else _of_lines(lines_read)


def _of_lines(lines: Iterator[tuple[int, str | None]]) -> Iterator[Record]:
    for number, line in lines:
        if line is None:
            yield number, "line of more than 64 MB"
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            yield number, "not JSON"
            continue
        yield number, record if isinstance(record, dict) else "not a JSON object"


class _List:
    """The objects of a JSON list, on one line or on many."""

    def __init__(self, lines: Iterator[str | None], name: str) -> None:
        self._lines, self._name = lines, name
        self._text, self._at = "", 0  # the unread part of the text begins at `_at`
        self._number = 1

    def records(self) -> Iterator[Record]:
        """Yield each record. Raises LooplineError at a broken object, because the start of the next is unknown."""
        self._expect("[")
        while self._peek() != "]":
            value = self._value()
            yield self._number, value if isinstance(value, dict) else "not a JSON object"
            self._number += 1
            if self._peek() == "]":
                break
            self._expect(",")
        self._at += 1
        if self._peek():
            raise self._broken("text follows its end")

    def _peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or not self._fill(1):
                return self._text[self._at : self._at + 1]

    def _expect(self, mark: str) -> None:
        if self._peek() != mark:
            raise self._broken(f"{mark!r} is missing")
        self._at += 1

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                # Double the text each time, so that a long record is not parsed again at each line.
                size = len(self._text) - self._at
                if isinstance(error, RecursionError) or size > MOST_RECORD or not self._fill(size + 1):
                    raise self._broken(str(error)) from error
            else:
                return value

    def _fill(self, least: int) -> bool:
        """Take lines until there are `least` more characters. Returns False if there was no line left."""
        taken: list[str] = []
        size = 0
        for line in self._lines:
            if line is None:
                raise self._broken("a line of more than 64 MB")
            taken.append(f"\n{line}")
            size += len(line)
            if size >= least:
                break
        self._text, self._at = self._text[self._at :] + "".join(taken), 0
        return bool(taken)

    def _broken(self, why: str) -> LooplineError:
        return LooplineError(
            f"{self._name}: the JSON list breaks off at item {self._number} ({why:.100}): correct it, or write JSON Lines"
        )
