"""Decide whether a table labels the files in the folders beside it, so that the folders are not the classes."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from loopline.data.formats.common import Folder, nfc
from loopline.errors import LooplineError
from loopline.tables import table_reader
from loopline.tables.columns import normal

Path = tuple[str, ...]
_TABLES = {".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".parquet"}
_ROWS, _COLUMNS = 100_000, 20  # read of a table; some tables have a column for each pixel
_OF_FILES = re.compile("id$|image|img|file|path|name|photo|picture|frame", re.IGNORECASE)


def table_of_labels(folder: Folder, classes: Mapping[Path, str]) -> str:
    """The first table that labels files otherwise than their folders do, if such tables name half of the files; else "".

    classes: file -> its class folder.
    """
    tables = folder.suffixed(_TABLES)
    files = _by_ends(classes) if tables else {}
    labelled = {table: named for table in tables if (named := _labelled(folder, table, files, classes))}
    enough = 2 * len(set[Path]().union(*labelled.values())) >= min(len(classes), _ROWS)
    return next(iter(labelled), "") if enough else ""


def _by_ends(classes: Mapping[Path, str]) -> dict[str, Path | None]:
    """Each end of a file's path, with and without suffix -> the file, None if several files share the end."""
    ends: dict[str, Path | None] = {}
    for path in classes:
        full = nfc("/".join(path))
        for name in (full, full.rpartition(".")[0]):
            for end in _ends(name):
                ends[end] = None if end in ends else path
    return ends


def _ends(path: str) -> Iterator[str]:
    """Yield the path, then the path without its first folder, without its first two, and so on."""
    while path:
        yield path
        path = path.partition("/")[2]


def _labelled(folder: Folder, table: str, files: Mapping[str, Path | None], classes: Mapping[Path, str]) -> set[Path]:
    """The files that a table names; none if one of its columns agrees with their folders."""
    try:
        with (folder.root / table).open("rb") as file:
            content = table_reader.read(file, table, table, _columns)
            rows = [list(map(str, row.values)) for row in itertools.islice(content.rows, _ROWS) if not row.problem]
    except (LooplineError, OSError):
        return set()
    named: dict[int, Path] = {}  # row -> the file that it names
    file_column = -1
    for place, column in enumerate(content.chosen or ()):
        matches = {number: path for number, row in enumerate(rows) if (path := _file(row[place], files))}
        # Training steps and class numbers do not name files, even if files have such names.
        numbers = all(rows[number][place].isdecimal() for number in matches)
        if len(matches) > len(named) and (not numbers or _OF_FILES.search(column)):
            named, file_column = matches, place
    for place in range(len(content.chosen or ())):
        pairs = {(classes[path], rows[number][place].strip()) for number, path in named.items()}
        if place != file_column and _are_one_to_one(pairs):
            return set()
    return set(named.values())


def _columns(names: Sequence[str]) -> list[str] | None:
    """The first _COLUMNS columns with a unique name, None if there is only one."""
    counts = Counter(map(normal, names))
    unique = [name for name in names if counts[normal(name)] == 1]
    return unique[:_COLUMNS] if len(unique) > 1 else None


def _file(cell: str, files: Mapping[str, Path | None]) -> Path | None:
    """The file that a cell names by the end of its path, or None."""
    return next((path for end in _ends(nfc(cell.strip()).replace("\\", "/")) if (path := files.get(end))), None)


def _are_one_to_one(pairs: set[tuple[str, str]]) -> bool:
    folders, values = {folder for folder, _ in pairs}, {value for _, value in pairs}
    if len(pairs) == 1:
        return {name.casefold() for name in folders} == {value.casefold() for value in values}
    return len(pairs) == len(folders) == len(values)
