"""The inputs of a batch prediction, item by item: images of a folder or a list, at any fsspec URL. `texts` has the texts.

Memory holds one item and the listing of one folder at a time. An input that cannot be read becomes an item with an error.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import fsspec

from loopline.errors import LooplineError

MOST_BYTES = 64 << 20  # bytes of an encoded image or of a line
MOST_REASON = 300  # characters of a library's error message


class Item(NamedTuple):
    """An input. id: the row's number from 0, or the image's path. content: the text, or the image's full path, URL or
    encoded bytes.

    state: facts of the listing that show whether the file was changed. error: the reason why the item cannot be predicted.
    """

    id: int | str
    content: str | bytes = ""
    state: str = ""
    error: str | None = None


class BatchInput(NamedTuple):
    """The items in order. total: their number, if known beforehand. fs: the file system of their paths, if all share one."""

    items: Iterator[Item]
    total: int | None = None
    fs: Any = None


def reason(error: BaseException) -> str:
    """An error's reason in one line, without the item's name."""
    if isinstance(error, FileNotFoundError):
        return "not found"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, IsADirectoryError):
        return "a folder"
    return " ".join(f"{type(error).__name__}: {error}".split())[:MOST_REASON]


def locate(url: str) -> tuple[Any, str]:
    """The file system of a URL or path, and the path in it. Raises LooplineError."""
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError, OSError) as error:
        raise LooplineError(f"{url}: {error}") from error
    return fs, path


def images(url: str) -> BatchInput:
    """Every file under a folder in order of name, or the images of a text file with a path or URL a line. Raises LooplineError."""
    fs, path = locate(url)
    fs.invalidate_cache()
    try:
        if fs.isdir(path):
            return BatchInput(guarded(_folder(fs, path, path), url), fs=fs)
    except OSError as error:
        raise LooplineError(f"{url}: {reason(error)}") from error
    return BatchInput(guarded(_list(opened(url), url), url))


def contents(paths: Sequence[str], fs: Any = None) -> list[bytes | Exception]:
    """The bytes at each path of `fs`, or at each URL without one, or the error. Files of one file system are fetched together."""
    if fs is not None:
        return _fetch(fs, list(paths))
    results: list[bytes | Exception] = [FileNotFoundError()] * len(paths)
    groups: dict[int, tuple[Any, list[int], list[str]]] = {}
    for place, url in enumerate(paths):
        try:
            url_fs, path = locate(url)
        except LooplineError as error:
            results[place] = error
            continue
        _, places, inside = groups.setdefault(id(url_fs), (url_fs, [], []))
        places.append(place)
        inside.append(path)
    for url_fs, places, inside in groups.values():
        for place, data in zip(places, _fetch(url_fs, inside), strict=True):
            results[place] = data
    return results


def _fetch(fs: Any, paths: list[str]) -> list[bytes | Exception]:
    # `cat` would read `*`, `?` and `[` in names as patterns.
    results = fs.cat_ranges(paths, 0, MOST_BYTES + 1, on_error="return")
    large = LooplineError(f"more than {MOST_BYTES >> 20} MB")
    return [large if isinstance(data, bytes) and len(data) > MOST_BYTES else data for data in results]


def opened(url: str, compression: str | None = "infer") -> IO[bytes]:
    """Open a file for reading, unpacked if its name's suffix is a compression. Raises LooplineError."""
    try:
        file: IO[bytes] = fsspec.open(url, "rb", compression=compression).open()
    except FileNotFoundError as error:
        raise LooplineError(f"{url} not found") from error
    except (OSError, ValueError, ImportError) as error:
        raise LooplineError(f"{url}: {reason(error)}") from error
    return file


def guarded(items: Iterator[Item], url: str) -> Iterator[Item]:
    """Yield the items. Raises LooplineError if the source cannot be read to its end."""
    with told(url):
        yield from items


@contextmanager
def told(url: str) -> Iterator[None]:
    """Turn an error while reading the file at `url` into a LooplineError."""
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise LooplineError(f"{url} cannot be read to its end: {reason(error)}") from error


def lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Yield the lines without their end, and None for a line that is too long."""
    while line := file.readline(MOST_BYTES):
        if len(line) < MOST_BYTES or line.endswith(b"\n"):
            yield line.rstrip(b"\r\n")
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MOST_BYTES)
        yield None


def _folder(fs: Any, folder: str, root: str) -> Iterator[Item]:
    for info in sorted(fs.ls(folder, detail=True), key=lambda info: str(info["name"])):
        name = str(info["name"]).rstrip("/")
        if name == folder.rstrip("/") or name.rpartition("/")[2].startswith("."):
            continue  # an object store's entry for the folder itself, or a hidden file
        inside = plain(name.removeprefix(root.rstrip("/")).lstrip("/"))
        if info["type"] == "directory":
            yield from _folder(fs, name, root)
        elif info["type"] == "file" or (info.get("islink") and not fs.isdir(name)):
            state = [str(info[key]) for key in ("size", "mtime", "ETag", "LastModified") if key in info]
            yield Item(inside, name, " ".join(state))
        else:
            yield Item(inside, error="a link to a folder, not followed" if info.get("islink") else "not a file")


def _list(file: IO[bytes], url: str) -> Iterator[Item]:
    with file:
        for line in lines(file):
            if line is None or b"\0" in line:
                raise LooplineError(
                    f"{url} is not a list of images: give their folder, or a text file with a path or URL a line"
                )
            if path := line.decode("utf-8", "surrogateescape").strip().removeprefix("\ufeff"):
                yield Item(plain(path), path)


def plain(path: str) -> str:
    """A name with escapes in place of bytes that are not UTF-8, so that different names stay different."""
    return path.encode("utf-8", "backslashreplace").decode()
