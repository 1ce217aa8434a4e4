"""A request and its answer, as the protocol in `http` reads and writes them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Protocol

import httptools

COMPRESS_FROM = 1024  # bytes; less is not worth it
COMPRESS_TO = 1 << 20  # more would hold up everybody: a bundle's 4 MB take 80 ms
GZIP, ZLIB, RAW = 31, 15, -15  # zlib's names of the formats
WINDOWS = {b"gzip": (GZIP,), b"x-gzip": (GZIP,), b"deflate": (ZLIB, RAW)}
MOST_ENCODINGS = 2  # of one body
MOST_MEMBERS = 1024  # of a gzip: with 64 KB in each, 64 MB
PIECE = 16 * 1024  # bytes that are unpacked at a time
JSON, TEXT, BINARY = b"application/json", b"text/plain; charset=utf-8", b"application/octet-stream"
# Headers that are read as such
LISTS = {b"accept-encoding", b"connection", b"content-encoding", b"expect", b"transfer-encoding"}
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
    """A request whose body is complete. headers: names in lower case; of several of one name the last, but see `again`."""

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


def again(name: bytes, before: bytes, value: bytes) -> bytes:
    """The value of a header that comes once more. Lines of a list are one list (RFC 9110, 5.3). Raises Refusal for a second Host."""
    if name == b"host":
        raise Refusal(400, "more than one Host header", close=True)
    return before + b", " + value if name in LISTS else value


def without_offer(parser: httptools.HttpRequestParser, url: bytes, headers: Headers) -> bytes:
    """The head that was read, which offers another protocol, as plain HTTP/1.1. Raises Refusal for a tunnel."""
    method = parser.get_method()
    if method == b"CONNECT":
        raise Refusal(405, "no tunnels: this is no proxy", close=True)
    lines = [b"%b %b HTTP/%b" % (method, url, parser.get_http_version().encode("ascii"))]
    lines += [b"%b: %b" % header for header in headers.items() if header[0] != b"upgrade"]
    return b"\r\n".join([*lines, b"", b""])


@lru_cache(64)
def acceptable(accepted: bytes) -> bytes | None:
    """Choose gzip, deflate or None (as it is) by the weights of an Accept-Encoding header (RFC 9110, 12.5.3)."""
    weights: dict[bytes, float] = {}
    for member in accepted.lower().split(b","):
        name, _, parameter = (part.strip() for part in member.partition(b";"))
        key, _, value = (part.strip() for part in parameter.partition(b"="))
        try:
            weights[name.removeprefix(b"x-")] = float(value) if key == b"q" else 1.0
        except ValueError:  # no weight at all: such a member is not relied on
            weights[name.removeprefix(b"x-")] = 0.0
    others = weights.get(b"*", 0.0)
    best = max((b"gzip", b"deflate"), key=lambda name: weights.get(name, others))
    weight = weights.get(best, others)
    return best if weight > 0 and weight >= weights.get(b"identity", 0.0) else None


def encode(response: Response, connection: bytes | None, *, compression: bytes | None, head_only: bool) -> bytes:
    """The answer on the wire. connection: the header's value, if any. compression: what the client understands."""
    body = response.body[0] if len(response.body) == 1 else b"".join(response.body)
    lines = [_STATUS[response.status], b"content-type: ", response.content_type]
    if COMPRESS_FROM <= len(body) <= COMPRESS_TO and b"content-encoding" not in response.headers:
        lines.append(b"\r\nvary: accept-encoding")
        if compression:
            body = compress(body, compression)
            lines += [b"\r\ncontent-encoding: ", compression]
    lines.append(b"\r\ncontent-length: %d" % len(body))
    for name, value in response.headers.items():
        lines += [b"\r\n", name, b": ", value]
    if connection:
        lines += [b"\r\nconnection: ", connection]
    lines.append(b"\r\n\r\n")
    if not head_only:
        lines.append(body)
    return b"".join(lines)


def compress(body: bytes, encoding: bytes) -> bytes:
    """`body` as gzip or deflate (RFC 9110: the zlib format)."""
    packer = zlib.compressobj(1, wbits=GZIP if encoding == b"gzip" else ZLIB)
    return packer.compress(body) + packer.flush()


def decompress(body: bytes, encodings: bytes, limit: int) -> bytes:
    """The reverse of `compress`, for each name in a Content-Encoding header, the last one first.

    gzip may have several members, and zeros behind them; deflate may be raw. Raises Refusal past `limit` bytes and on broken data.
    """
    names = [name for part in encodings.lower().split(b",") if (name := part.strip()) not in (b"", b"identity")]
    if len(names) > MOST_ENCODINGS or not set(names) <= WINDOWS.keys():
        known = {b"accept-encoding": b"gzip, deflate"}
        raise Refusal(415, "Content-Encoding: gzip and deflate are understood", headers=known)
    for name in reversed(names):
        for window in WINDOWS[name]:
            try:
                body = _unpacked(body, window, limit)
                break
            except zlib.error:
                continue
        else:
            raise Refusal(400, f"the body is not what Content-Encoding says: {name.decode('ascii')}")
    return body


def _unpacked(body: bytes, window: int, limit: int) -> bytes:
    """One stream, or a gzip's members. Raises zlib.error."""
    plain = bytearray()
    view, place = memoryview(body), 0
    for _ in range(MOST_MEMBERS if window == GZIP else 1):
        unpacker = zlib.decompressobj(window)
        while not unpacker.eof:
            piece = view[place : place + PIECE]  # what is left of a piece is copied: of the whole body, at each member
            if not piece:
                raise zlib.error("the stream is cut off")
            plain += unpacker.decompress(piece, limit + 1 - len(plain))
            if len(plain) > limit:
                raise Refusal(413, f"a body of more than {limit} bytes once unpacked")
            place += len(piece) - len(unpacker.unconsumed_tail) - len(unpacker.unused_data)
        if place < len(body) and body[place]:
            continue  # another member
        if body.count(0, place) < len(body) - place:
            break
        return bytes(plain)
    raise zlib.error("more follows the stream")


class Application(Protocol):
    """What answers. Both calls are made in the event loop's thread."""

    def turn(self) -> None:
        """Something is about to be read."""

    def admit(self, method: str, path: str, headers: Headers) -> int:
        """The head is there: how many bytes of body are welcome. Raises Refusal, and the body is thrown away unread."""

    def about(self, method: str, path: str, refusal: Refusal) -> Refusal:
        """The refusal, with a note of what it is about."""

    def answer(self, request: Request, respond: Respond) -> Cancel | None:
        """Call `respond` once, now or later. Returns what to call if the client goes away before. Raises Refusal."""

    def refusal(self, refusal: Refusal) -> Response:
        """The answer that tells the client."""


class Listener(Protocol):
    """What a connection knows of its server. discard: bytes of an unwelcome body that are read. now: monotonic seconds."""

    application: Application
    discard: int
    draining: bool
    now: Callable[[], float]

    def opened(self, connection: Any) -> None:
        """A client came."""

    def closed(self, connection: Any) -> None:
        """A client went."""
