r"""Decode text files: UTF-8, UTF-16, UTF-32 with a byte order mark, else Windows-1252. Lines end at \n and nowhere else."""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any

CHUNK = 1 << 16  # bytes of one read; the first chunk decides between UTF-8 and Windows-1252
MOST_LINE = 64 << 20  # bytes of one line; in UTF-16 and UTF-32, characters
# UTF-32 comes first, because its little-endian mark begins like that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# _HALF stands for invalid UTF-16, _OPEN for the five bytes that Windows-1252 does not define: the text has another
# encoding. No valid text has these characters, so `problem` can find them.
_HALF, _OPEN = "\udcff", "\udc81"
_WINDOWS = {byte: bytes([byte]).decode("cp1252", "ignore") or _OPEN for byte in range(0x80, 0xA0)}
_HALVES = re.compile(r"[\ud800-\udfff]")


def _half(error: UnicodeError) -> tuple[str, int]:
    return _HALF, error.end if isinstance(error, UnicodeDecodeError) else 0


codecs.register_error("loopline.half", _half)


def decode(data: bytes) -> str:
    """Decode a complete text by its byte order mark; without one, each line as UTF-8, or else as Windows-1252."""
    if wide := _wide(data):
        return data.decode(wide, "loopline.half")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        windows = _is_windows(data)
        return "\n".join(_decode_line(line, windows) for line in data.removeprefix(codecs.BOM_UTF8).split(b"\n"))


def problem(text: str) -> str | None:
    """The reason why a decoded text cannot be used, or None."""
    if text.isascii() or not _HALVES.search(text):
        return None
    return "that is neither UTF-8 nor Windows-1252" if _OPEN in text else "with halves of characters"


def lines(file: IO[bytes]) -> Iterator[str | None]:
    r"""Yield the lines of a file without their \n, and None for a line longer than MOST_LINE.

    A line keeps its \r. U+0085, U+2028 and the like do not end a line.
    """
    head = file.read(CHUNK)
    rest = iter(lambda: file.read(CHUNK), b"")
    if wide := _wide(head):
        decoder = codecs.getincrementaldecoder(wide)("loopline.half")
        yield from _split((decoder.decode(chunk, not chunk) for chunk in itertools.chain([head], rest, [b""])), "\n")
        return
    windows = _is_windows(head)
    for line in _split(itertools.chain([head.removeprefix(codecs.BOM_UTF8)], rest), b"\n"):
        yield None if line is None else _decode_line(line, windows)


def _wide(data: bytes) -> str | None:
    """The encoding of a byte order mark; without one, UTF-16 if at least half of the even or odd bytes are zero; else None."""
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            return name
    halves = {"utf-16-be": data[:CHUNK:2], "utf-16-le": data[1:CHUNK:2]}
    return next((name for name, bytes_ in halves.items() if 2 * bytes_.count(0) > max(len(bytes_), 2)), None)


def _is_windows(data: bytes) -> bool:
    """Whether, without a byte order mark, most of the first lines beyond ASCII are not UTF-8."""
    if data.startswith(codecs.BOM_UTF8):
        return False
    *ended, last = data[:CHUNK].split(b"\n")
    votes = sum(1 if _is_utf8(line, complete=True) else -1 for line in ended if not line.isascii())
    if not last.isascii():
        votes += 1 if _is_utf8(last, complete=len(data) < CHUNK) else -1
    return votes < 0


def _is_utf8(line: bytes, *, complete: bool) -> bool:
    try:
        codecs.utf_8_decode(line, "strict", complete)
    except UnicodeDecodeError:
        return False
    return True


def _decode_line(line: bytes, windows: bool) -> str:
    if not windows:
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError:
            pass
    return line.decode("latin-1").translate(_WINDOWS)


def _split(pieces: Iterable[Any], mark: Any) -> Iterator[Any]:
    """Yield the lines of pieces of text or bytes, and None for a line that is too long."""
    kept: list[Any] = []
    size = 0
    for piece in pieces:
        *ends, rest = piece.split(mark)
        for part in ends:
            yield None if size + len(part) > MOST_LINE else mark[:0].join([*kept, part])
            kept, size = [], 0
        size += len(rest)
        kept.append(rest)
        if size > MOST_LINE:
            kept.clear()
    if size:
        yield None if size > MOST_LINE else mark[:0].join(kept)
