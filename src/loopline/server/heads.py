"""The head of a request: its first line and its headers. A client repeats it byte for byte, so it is parsed once."""

from __future__ import annotations

import httptools

from loopline.server.messages import Head, Headers, Refusal, acceptable

REMEMBERED, REMEMBERED_BYTES = 512, 2048  # most remembered heads, most bytes of one
END = b"\r\n\r\n"


def read(parser: httptools.HttpRequestParser, url: bytes, headers: Headers) -> Head:
    """The head that the parser has just completed. Raises Refusal (400)."""
    try:
        parsed = httptools.parse_url(url)
        path = parsed.path.decode("ascii") if parsed.path else "/"
    except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
        raise Refusal(400, "the address cannot be read") from None
    length, version = headers.get(b"content-length"), parser.get_http_version()
    return Head(
        method=parser.get_method().decode("ascii"),
        path=path,
        query=parsed.query or b"",
        headers=headers,
        length=None if length is None else int(length),
        version=version,
        keep_alive=parser.should_keep_alive(),
        say_kept=version == "1.0" and (b"connection" in headers or b"proxy-connection" in headers),
        compress=acceptable(accepted) if (accepted := headers.get(b"accept-encoding")) else None,
    )


class HeadCache:
    """The heads that a server remembers, by their bytes."""

    def __init__(self) -> None:
        """Remember none yet."""
        self.known: dict[bytes, Head] = {}

    def find(self, data: bytes) -> tuple[bytes, Head | None]:
        """The complete head at the start of `data`, or nothing if it is incomplete or long; and its meaning, if it is remembered."""
        end = data.find(END, 0, REMEMBERED_BYTES)
        if end < 0:
            return b"", None
        raw = data[: end + 4]
        return raw, self.known.get(raw)

    def remember(self, raw: bytes, head: Head) -> None:
        """Remember a head, unless it asks for more than an answer to a body of a known length on a kept connection."""
        headers = head.headers
        if not head.keep_alive or b"transfer-encoding" in headers or b"expect" in headers or b"upgrade" in headers:
            return
        # The parser is lenient with the ends of lines, and it may have seen the head's end elsewhere, or a header twice.
        if raw.count(b"\n") != len(headers) + 2:
            return
        if len(self.known) >= REMEMBERED:
            self.known.clear()
        self.known[raw] = head
