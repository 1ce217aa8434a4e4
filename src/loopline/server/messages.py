"""A request and its answer, as the protocol in `connection` reads and writes them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Protocol

import httptools

COMPRESS_FROM = 1024  # bytes; compressing less is not worth the time
COMPRESS_TO = 1 << 20  # bytes; compressing more would delay other clients: a bundle's 4 MB take 80 ms
GZIP, ZLIB, RAW = 31, 15, -15  # zlib's numbers (wbits) of the formats
WINDOWS = {b"gzip": (GZIP,), b"x-gzip": (GZIP,), b"deflate": (ZLIB, RAW)}
MOST_ENCODINGS = 2  # encodings of one body
MOST_MEMBERS = 1024  # members of a gzip body: with 64 KB in each, 64 MB
PIECE = 16 * 1024  # bytes that are unpacked at a time
JSON, TEXT, BINARY = b"application/json", b"text/plain; charset=utf-8", b"application/octet-stream"
# Headers whose value is a list
LISTS = {b"accept-encoding", b"connection", b"content-encoding", b"expect", b"transfer-encoding"}
Headers = dict[bytes, bytes]


class Refusal(Exception):
    """A request is refused. message: what is wrong, and what to do. close: whether the connection must be closed."""

    def __init__(self, status: int, message: str, *, headers: Headers | None = None, close: bool = False) -> None:
        """status: the HTTP status. headers: further headers of the answer, such as Retry-After."""
        super().__init__(message)
        self.status, self.message, self.headers, self.close = status, message, headers or {}, close
        self.about: Any = None  # the application's own note


@dataclass(frozen=True, slots=True)
class Head:
    """A head that can be answered. headers: names in lower case; requests with the same head share them, so they are not changed.

    length: bytes of the body, or None if it comes in chunks or if there is none. say_kept: whether an HTTP/1.0 client waits for
    the connection's end unless it is told that the connection is kept. compress: the answer's encoding that the client prefers.
    """

    method: str
    path: str
    query: bytes
    headers: Headers
    length: int | None
    version: str
    keep_alive: bool
    say_kept: bool
    compress: bytes | None


@dataclass(slots=True)
class Request:
    """A request with its complete body. headers: names in lower case; of a repeated header the last, but see `again`."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    received: float  # time.monotonic() at its start


@dataclass(slots=True)
class Response:
    """An answer. body: parts, sent one after the other."""

    status: int = 200
    body: tuple[bytes, ...] = ()
    content_type: bytes = JSON
    headers: Headers = field(default_factory=dict)
    close: bool = False


Respond = Callable[[Response], None]
Cancel = Callable[[], None]
_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


def number(text: bytes, most: int) -> int | None:
    """The whole number from 0 to `most` in a header's value, or None. Bounded, because int() fails on thousands of digits."""
    value = int(text) if text.isdigit() and len(text) <= 20 else None
    return value if value is not None and value <= most else None


def again(name: bytes, before: bytes, value: bytes) -> bytes:
    """The value of a repeated header. The lines of a list are joined (RFC 9110, 5.3). Raises Refusal for a second Host."""
    if name == b"host":
        raise Refusal(400, "more than one Host header", close=True)
    return before + b", " + value if name in LISTS else value


def without_offer(parser: httptools.HttpRequestParser, url: bytes, headers: Headers) -> bytes:
    """The head of a request that offers another protocol, without the offer. Raises Refusal for a tunnel (CONNECT)."""
    method = parser.get_method()
    if method == b"CONNECT":
        raise Refusal(405, "this server is not a proxy and opens no tunnels", close=True)
    lines = [b"%b %b HTTP/%b" % (method, url, parser.get_http_version().encode("ascii"))]
    lines += [b"%b: %b" % header for header in headers.items() if header[0] != b"upgrade"]
    return b"\r\n".join([*lines, b"", b""])


@lru_cache(64)
def acceptable(accepted: bytes) -> bytes | None:
    """Choose gzip, deflate or None (uncompressed) by the weights of an Accept-Encoding header (RFC 9110, 12.5.3)."""
    weights: dict[bytes, float] = {}
    for member in accepted.lower().split(b","):
        name, _, parameter = (part.strip() for part in member.partition(b";"))
        key, _, value = (part.strip() for part in parameter.partition(b"="))
        try:
            weights[name.removeprefix(b"x-")] = float(value) if key == b"q" else 1.0
        except ValueError:  # not a valid weight, so the encoding is not used
            weights[name.removeprefix(b"x-")] = 0.0
    others = weights.get(b"*", 0.0)
    best = max((b"gzip", b"deflate"), key=lambda name: weights.get(name, others))
    weight = weights.get(best, others)
    return best if weight > 0 and weight >= weights.get(b"identity", 0.0) else None


def encode(response: Response, connection: bytes | None, head: Head | None) -> bytes:
    """The answer's bytes. connection: the header's value, if any. head: of the request, if it could be read."""
    body = response.body[0] if len(response.body) == 1 else b"".join(response.body)
    lines = [_STATUS[response.status], b"content-type: ", response.content_type]
    if COMPRESS_FROM <= len(body) <= COMPRESS_TO and b"content-encoding" not in response.headers:
        lines.append(b"\r\nvary: accept-encoding")
        if head and head.compress:
            body = compress(body, head.compress)
            lines += [b"\r\ncontent-encoding: ", head.compress]
    lines.append(b"\r\ncontent-length: %d" % len(body))
    for name, value in response.headers.items():
        lines += [b"\r\n", name, b": ", value]
    if connection:
        lines += [b"\r\nconnection: ", connection]
    lines.append(b"\r\n\r\n")
    if not (head and head.method == "HEAD"):
        lines.append(body)
    return b"".join(lines)


def compress(body: bytes, encoding: bytes) -> bytes:
    """Compress `body` as gzip or deflate (which RFC 9110 defines as the zlib format)."""
    packer = zlib.compressobj(1, wbits=GZIP if encoding == b"gzip" else ZLIB)
    return packer.compress(body) + packer.flush()


def decompress(body: bytes, encodings: bytes, limit: int) -> bytes:
    """Reverse `compress` for each name in a Content-Encoding header, the last name first.

    gzip may have several members, followed by zeros; deflate may be raw. Raises Refusal for over `limit` bytes or broken data.
    """
    names = [name for part in encodings.lower().split(b",") if (name := part.strip()) not in (b"", b"identity")]
    if len(names) > MOST_ENCODINGS or not set(names) <= WINDOWS.keys():
        accepted = {b"accept-encoding": b"gzip, deflate"}
        raise Refusal(415, "Content-Encoding: this server supports gzip and deflate", headers=accepted)
    for name in reversed(names):
        for window in WINDOWS[name]:
            try:
                body = _unpacked(body, window, limit)
                break
            except zlib.error:
                continue
        else:
            raise Refusal(400, f"the body is not valid {name.decode('ascii')}, which Content-Encoding names")
    return body


def _unpacked(body: bytes, window: int, limit: int) -> bytes:
    """Unpack one stream, or all members of a gzip. Raises zlib.error, or Refusal (413) for over `limit` bytes."""
    plain = bytearray()
    view, place = memoryview(body), 0
    for _ in range(MOST_MEMBERS if window == GZIP else 1):
        unpacker = zlib.decompressobj(window)
        while not unpacker.eof:
            piece = view[
                place : place + PIECE
            ]  # zlib copies the unused rest: of a piece, not of the body, for each member
            if not piece:
                raise zlib.error("the stream is cut off")
            plain += unpacker.decompress(piece, limit + 1 - len(plain))
            if len(plain) > limit:
                raise Refusal(413, f"the body has more than {limit} bytes once unpacked")
            place += len(piece) - len(unpacker.unconsumed_tail) - len(unpacker.unused_data)
        if place < len(body) and body[place]:
            continue  # another member
        if body.count(0, place) < len(body) - place:
            break
        return bytes(plain)
    raise zlib.error("more follows the stream")


class Heads(Protocol):
    """The heads that a server remembers. See `heads`."""

    def find(self, data: bytes) -> tuple[bytes, Head | None]:
        """The complete head at the start of `data`, and its meaning if it is remembered."""

    def remember(self, raw: bytes, head: Head) -> None:
        """Remember a head."""


class Application(Protocol):
    """The application behind a connection. All calls are made in the event loop's thread."""

    def wakes(self, wake: Callable[[], None]) -> None:
        """Call `wake` each time that `hungry` may have become true."""

    def newest(self, waited: float) -> bool:
        """Whether to read the newest request next, not the oldest. waited: seconds for which the oldest has waited."""

    def hungry(self, spent: float) -> bool:
        """Whether to read on. spent: seconds of reading in this turn."""

    def turn(self, spent: float) -> None:
        """Called after each turn of reading, which took `spent` seconds."""

    def admit(self, method: str, path: str, headers: Headers, arrived: float) -> int:
        """Called once the head is complete: the most bytes of body. Raises Refusal; then the body is discarded unread.

        arrived: when the head did, by the clock of time.monotonic().
        """

    def about(self, method: str, path: str, refusal: Refusal) -> Refusal:
        """The refusal, with a note of its route."""

    def answer(self, request: Request, respond: Respond) -> Cancel | None:
        """Call `respond` once, now or later. Returns a function to call if the client leaves before. Raises Refusal."""

    def refusal(self, refusal: Refusal) -> Response:
        """The answer for a refused request."""


class Listener(Protocol):
    """A connection's view of its server. discard: bytes of a refused body that are read. now: monotonic seconds."""

    application: Application
    discard: int
    draining: bool
    now: Callable[[], float]

    @property
    def heads(self) -> Heads:
        """The remembered heads."""

    def opened(self, connection: Any) -> None:
        """Add a connection."""

    def closed(self, connection: Any) -> None:
        """Remove a connection."""
