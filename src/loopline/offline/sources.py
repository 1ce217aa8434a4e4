"""What there is to predict, item by item: rows of a table of texts, images of a folder or of a list. Any fsspec URL.

Nothing is held but the item at hand and the listing of one folder. What cannot be read is an item too: one with an error.
"""

from __future__ import annotations

import csv
import io
import lzma
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import fsspec
import orjson

from loopline.errors import LooplineError
from loopline.serving.model import MOST_TEXT

COLUMN = "text"
MOST_BYTES = 64 << 20  # of an encoded image, or of a line
MOST_REASON = 300  # characters of what a library says
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


class Item(NamedTuple):
    """id: the row's number from 0, or the image's path. content: the text, or where the image is.

    state: what of the listing tells whether the file was changed. error: why there is nothing to predict.
    """

    id: int | str
    content: str = ""
    state: str = ""
    error: str | None = None


class Source(NamedTuple):
    """The items in order, their number where it is known beforehand, and the file system that their paths are of, if one."""

    items: Iterator[Item]
    total: int | None = None
    fs: Any = None


def reason(error: BaseException) -> str:
    """What went wrong with one item, in one line without the item's name."""
    if isinstance(error, FileNotFoundError):
        return "not found"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, IsADirectoryError):
        return "a folder"
    return " ".join(f"{type(error).__name__}: {error}".split())[:MOST_REASON]


def suffix(url: str) -> str:
    """`.csv` of `s3://bucket/Names.CSV.gz`."""
    name = url.rpartition("/")[2].lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return f".{name.rpartition('.')[2]}" if "." in name else ""


def locate(url: str) -> tuple[Any, str]:
    """The file system of a URL or path, and the path in it. Raises LooplineError."""
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError, OSError) as error:
        raise LooplineError(f"{url}: {error}") from error
    return fs, path


def texts(url: str, column: str = COLUMN) -> Source:
    """The rows of a CSV, TSV, JSON Lines or Parquet file. Raises LooplineError where it cannot be read or has no such column."""
    kind = suffix(url)
    if kind not in TABLES:
        raise LooplineError(f"{url}: a text model wants a file ending in {', '.join(TABLES)}")
    if kind == ".parquet":
        return _parquet(_open(url, compression=None), url, column)
    if kind in (".csv", ".tsv"):
        return Source(_guarded(_checked(_csv(_open(url), url, column, "\t" if kind == ".tsv" else ",")), url))
    return Source(_guarded(_checked(_jsonl(_open(url), url, column)), url))


def images(url: str) -> Source:
    """Every file under a folder in order of name, or the paths and URLs of a text file, one a line."""
    fs, path = locate(url)
    fs.invalidate_cache()
    try:
        if fs.isdir(path):
            return Source(_guarded(_folder(fs, path, path), url), fs=fs)
    except OSError as error:
        raise LooplineError(f"{url}: {reason(error)}") from error
    return Source(_guarded(_list(_open(url), url), url))


def contents(paths: Sequence[str], fs: Any = None) -> list[bytes | Exception]:
    """The bytes at each path of `fs`, or at each URL, or what went wrong. Those of one file system are fetched together."""
    if fs is not None:
        return _fetch(fs, list(paths))
    found: list[bytes | Exception] = [FileNotFoundError()] * len(paths)
    groups: dict[int, tuple[Any, list[int], list[str]]] = {}
    for place, url in enumerate(paths):
        try:
            one, path = locate(url)
        except LooplineError as error:
            found[place] = error
            continue
        _, places, inside = groups.setdefault(id(one), (one, [], []))
        places.append(place)
        inside.append(path)
    for one, places, inside in groups.values():
        for place, data in zip(places, _fetch(one, inside), strict=True):
            found[place] = data
    return found


def _fetch(fs: Any, paths: list[str]) -> list[bytes | Exception]:
    # Not `cat`: it takes `*`, `?` and `[` in names for patterns.
    found = fs.cat_ranges(paths, 0, MOST_BYTES + 1, on_error="return")
    large = LooplineError(f"more than {MOST_BYTES >> 20} MB")
    return [large if isinstance(data, bytes) and len(data) > MOST_BYTES else data for data in found]


def _open(url: str, compression: str | None = "infer") -> IO[bytes]:
    try:
        file: IO[bytes] = fsspec.open(url, "rb", compression=compression).open()
    except FileNotFoundError as error:
        raise LooplineError(f"{url} not found") from error
    except (OSError, ValueError, ImportError) as error:
        raise LooplineError(f"{url}: {reason(error)}") from error
    return file


def _guarded(items: Iterator[Item], url: str) -> Iterator[Item]:
    """The items; what breaks the source itself half-way is a LooplineError."""
    try:
        yield from items
    except (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        lzma.LZMAError,
    ) as error:  # pyarrow's errors are OSErrors and ValueErrors
        raise LooplineError(f"{url} cannot be read to its end: {reason(error)}") from error


def _checked(rows: Iterator[Any]) -> Iterator[Item]:
    """An item for each row: a text, a value that is none, or the error that stands in its place."""
    for number, text in enumerate(rows):
        if isinstance(text, Exception):
            yield Item(number, error=reason(text).removeprefix("LooplineError: "))
        elif not isinstance(text, str):
            yield Item(number, error="no text" if text is None else f"not a text but {text!r:.60}")
        elif len(text) > MOST_TEXT:
            yield Item(number, error=f"{len(text)} characters, at most {MOST_TEXT} are accepted")
        elif not text.isascii() and _plain(text) != text:
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
    with io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as lines:
        rows = csv.reader(lines, delimiter=mark)
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


def _lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Lines without their end, None for one that is too long."""
    while line := file.readline(MOST_BYTES):
        if len(line) < MOST_BYTES or line.endswith(b"\n"):
            yield line.rstrip(b"\r\n")
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MOST_BYTES)
        yield None


def _jsonl(file: IO[bytes], url: str, column: str) -> Iterator[Any]:
    seen = False
    with file:
        for line in _lines(file):
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
        opened = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise LooplineError(f"{url} is not a Parquet file: {error}") from error
    _column(opened.schema_arrow.names, column, url)

    def rows() -> Iterator[Any]:
        with file:
            for batch in opened.iter_batches(batch_size=1024, columns=[column]):
                yield from batch.column(0).to_pylist()

    return Source(_guarded(_checked(rows()), url), opened.metadata.num_rows)


def _folder(fs: Any, folder: str, root: str) -> Iterator[Item]:
    for info in sorted(fs.ls(folder, detail=True), key=lambda info: str(info["name"])):
        name = str(info["name"]).rstrip("/")
        if name == folder.rstrip("/") or name.rpartition("/")[2].startswith("."):
            continue  # an object store's mark for the folder itself; what is hidden
        inside = _plain(name.removeprefix(root.rstrip("/")).lstrip("/"))
        if info["type"] == "directory":
            yield from _folder(fs, name, root)
        elif info["type"] == "file" or (info.get("islink") and not fs.isdir(name)):
            state = [str(info[key]) for key in ("size", "mtime", "ETag", "LastModified") if key in info]
            yield Item(inside, name, " ".join(state))
        else:
            yield Item(inside, error="a link to a folder, it is not followed" if info.get("islink") else "not a file")


def _list(file: IO[bytes], url: str) -> Iterator[Item]:
    with file:
        for line in _lines(file):
            if line is None or b"\0" in line:
                raise LooplineError(f"{url} is not a list of images: give a text file with a path or URL a line")
            if path := line.decode("utf-8", "surrogateescape").strip().removeprefix("\ufeff"):
                yield Item(_plain(path), path)


def _plain(path: str) -> str:
    """A name that is not UTF-8, with question marks."""
    return path.encode("utf-8", "replace").decode()
