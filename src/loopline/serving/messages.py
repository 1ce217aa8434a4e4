"""A request and its answer, as the protocol in `http` reads and writes them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

COMPRESS_FROM = 1024  # bytes; less is not worth it
COMPRESS_TO = 1 << 20  # more would hold up everybody: a bundle's 4 MB take 80 ms
JSON, TEXT, BINARY = b"application/json", b"text/plain; charset=utf-8", b"application/octet-stream"
Headers = dict[bytes, bytes]


class Refusal(Exception):
    """The request cannot be answered: an HTTP status, what was wrong, and what to do. close: the connection is of no more use."""

    def __init__(self, status: int, message: str, *, headers: Headers | None = None, close: bool = False) -> None:
        """headers: further ones of the answer, e.g. Retry-After."""
        super().__init__(message)
        self.status, self.message, self.headers, self.close = status, message, headers or {}, close
        self.about: Any = None  # the application's own note


@dataclass(slots=True)
class Request:
    """A request whose body is complete. headers: names in lower case; of several of one name the last."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    received: float  # time.monotonic() of its head


@dataclass(slots=True)
class Response:
    """An answer. body: parts that are sent one after the other."""

    status: int = 200
    body: tuple[bytes, ...] = ()
    content_type: bytes = JSON
    headers: Headers = field(default_factory=dict)
    close: bool = False


Respond = Callable[[Response], None]
Cancel = Callable[[], None]
_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


def number(given: bytes, most: int) -> int | None:
    """The whole number in a header, from 0 to `most`; None if it is none. Python itself fails on thousands of digits."""
    found = int(given) if given.isdigit() and len(given) <= 20 else None
    return found if found is not None and found <= most else None


def encode(response: Response, *, last: bool, compression: bytes | None, head_only: bool) -> bytes:
    """The answer on the wire. last: the connection is closed after it. compression: what the client understands."""
    body = response.body[0] if len(response.body) == 1 else b"".join(response.body)
    lines = [_STATUS[response.status], b"content-type: ", response.content_type]
    if compression and COMPRESS_FROM <= len(body) <= COMPRESS_TO and b"content-encoding" not in response.headers:
        body = compress(body, compression)
        lines += [b"\r\ncontent-encoding: ", compression]
    lines.append(b"\r\ncontent-length: %d" % len(body))
    for name, value in response.headers.items():
        lines += [b"\r\n", name, b": ", value]
    lines.append(b"\r\nconnection: close\r\n\r\n" if last else b"\r\n\r\n")
    if not head_only:
        lines.append(body)
    return b"".join(lines)


def compress(body: bytes, encoding: bytes) -> bytes:
    """`body` as gzip or deflate (RFC 9110: the zlib format)."""
    packer = zlib.compressobj(1, wbits=31 if encoding == b"gzip" else 15)
    return packer.compress(body) + packer.flush()


def decompress(body: bytes, encoding: bytes, limit: int) -> bytes:
    """The reverse of `compress`; raw deflate is understood too. Raises Refusal past `limit` bytes, and on broken data."""
    kinds = {b"gzip": (31,), b"x-gzip": (31,), b"deflate": (15, -15)}
    if encoding not in kinds:
        raise Refusal(415, "Content-Encoding: gzip and deflate are understood")
    for wbits in kinds[encoding]:
        unpacker = zlib.decompressobj(wbits=wbits)
        try:
            plain = unpacker.decompress(body, limit + 1)
        except zlib.error:
            continue
        if len(plain) > limit:
            raise Refusal(413, f"a body of more than {limit} bytes once unpacked")
        if unpacker.eof and not unpacker.unused_data:
            return plain
    raise Refusal(400, f"the body is not what Content-Encoding says: {encoding.decode('ascii')}")
