"""Tables of texts: CSV, TSV, JSON Lines or Parquet with a text column, a label column, and perhaps a split column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from loopline.data.formats.common import Folder, Format, broken, split_of_file, split_of_folder, suffix
from loopline.data.raw import RawSample
from loopline.errors import LooplineError
from loopline.tables import table_reader
from loopline.tables.columns import Unreadable, cell, label_cell, match, pick
from loopline.tables.delimited import TableRow

_NOT_ACCEPTED = ("reject", "ignore")  # in Prodigy's column `answer`


def _roles(columns: Sequence[str], group: str | None = None) -> dict[str, str]:
    """Role -> column, for the roles text, label, and if present split, answer and group; {} without text and label."""
    if not (chosen := pick(columns)):
        return {}
    roles = dict(zip(("text", "label", "split"), chosen, strict=True))
    roles |= {"answer": match(columns, ["answer"]), "group": match(columns, [group]) if group else None}
    return {role: column for role, column in roles.items() if column is not None}


def _choose(columns: Sequence[str], group: str | None = None) -> Sequence[str] | None:
    return list(_roles(columns, group).values()) or None


def _columns(folder: Folder, name: str) -> list[str]:
    try:
        with (folder.root / name).open("rb") as file:
            return table_reader.read(file, name, name, _choose).columns
    except OSError as error:
        raise LooplineError(f"{name} cannot be opened: {error.strerror}") from error


def describe(folder: Folder, name: str) -> str:
    """The columns of a table, or why it cannot be read, as a sentence."""
    try:
        return f"Columns of {name}: {', '.join(_columns(folder, name)) or 'none'}"
    except LooplineError as error:
        return str(error)


def has_columns(folder: Folder, name: str) -> bool:
    """Whether the file is a table with a text column and a label column."""
    try:
        return suffix(name) in table_reader.KINDS and pick(_columns(folder, name)) is not None
    except LooplineError:
        return False


def _read(folder: Folder) -> Iterator[RawSample]:
    for name in folder.files:
        if suffix(name) in table_reader.KINDS:
            yield from _read_table(folder, name)
        else:
            yield broken(name, "file that is not a table")


def _read_table(folder: Folder, name: str) -> Iterator[RawSample]:
    try:
        file = (folder.root / name).open("rb")
    except OSError:
        yield broken(name, "file that cannot be opened")
        return
    with file:
        table = table_reader.read(file, str(folder.root / name), name, partial(_choose, group=folder.group))
        if not table.chosen:
            yield broken(name, "table without a text column and a label column")
            return
        roles = _roles(table.columns, folder.group)
        for row in table.rows:
            yield _sample(f"{name}:{row.number}", row, split_of_file(name), roles)


def _sample(where: str, row: TableRow, published: str | None, roles: dict[str, str]) -> RawSample:
    if row.problem is not None:
        return broken(where, row.problem, split=published)
    values = dict(zip(roles, row.values, strict=True))
    try:
        split_name = cell(values.get("split"), "split")
        split = split_of_folder(split_name) if split_name else published
        if split_name and split is None:
            return replace(broken(where, "unknown split name"), detail=f"{roles['split'].strip()}: {split_name!r:.80}")
        if values.get("answer") in _NOT_ACCEPTED:
            return broken(where, "answer other than accept", split=split)
        text, label, group = cell(values["text"]) or "", label_cell(values["label"]), cell(values.get("group"), "group")
    except Unreadable as error:
        return broken(where, str(error), split=published)
    return RawSample(where, None, text, label, None, split, group=group)


TABLES = Format(
    name="a table of texts",
    content="text",
    truth="label",
    layout="CSV, TSV, JSON Lines or Parquet with the columns text (or sentence, content, review, ...) and "
    "label (or class, target, category, ...); optionally split; or train.csv, val.csv, test.csv",
    detect=lambda folder: any(has_columns(folder, name) for name in folder.files),
    read=_read,
)
