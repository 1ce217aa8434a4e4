"""The reading of one connection's requests: they are parsed, bounded, and handed over once they are complete."""

from __future__ import annotations

import httptools

from loopline.server import heads, messages
from loopline.server.messages import Head, Headers, Listener, Refusal, Request

HEAD_BYTES = 32 * 1024  # most bytes of a request's first line and headers, and again of its trailers
HEADERS = 100  # most headers of a request, and again most trailers


class Incoming:
    """The state of what is being read. httptools calls the `on_...` methods while it parses.

    Slots, because in a flood the processor's cache has forgotten a connection when its turn comes.
    """

    __slots__ = (
        "application",
        "arrived",
        "body",
        "closing",
        "fields",
        "head",
        "head_bytes",
        "headers",
        "limit",
        "missing",
        "parser",
        "phase",
        "plain",
        "raw",
        "refused",
        "server",
        "since",
        "size",
        "url",
        "waits",
    )

    def __init__(self, server: Listener) -> None:
        """server: holds the application and all connections."""
        self.server, self.application = server, server.application
        self.parser = httptools.HttpRequestParser(self)
        self.closing = False  # whether further requests are ignored
        self.arrived = 0.0  # when the data that is being read arrived; 0 if the transport does not tell
        self._fresh()
        self.since = server.now()  # start of the current phase: idle, head, body or lingering

    def complete(self, head: Head, request: Request | Refusal) -> None:
        """Take a complete request, or what refuses it."""
        raise NotImplementedError

    def go_on(self) -> None:
        """Tell the client to send the body."""
        raise NotImplementedError

    def _fresh(self) -> None:
        self.url = b""
        self.headers: Headers = {}  # being read: the head's, then the trailers, which are ignored
        self.head: Head | None = None  # set once it is complete
        self.raw = b""  # its bytes, if all of them came at once
        self.body: list[bytes] = []
        self.missing = 0  # bytes of the body of a remembered head, which the parser does not see
        self.head_bytes, self.fields, self.size, self.limit = 0, 0, 0, 0
        self.phase = "idle"
        self.refused: Refusal | None = None
        self.plain = b""  # the head of a request that offers another protocol, without the offer
        self.waits = False  # whether the client waits for `100 Continue` before it sends the body

    def feed(self, data: bytes) -> None:
        """Read requests. Those with a remembered head do not need the parser."""
        while data and not self.closing:
            if self.missing:
                piece, data = data[: self.missing], data[self.missing :]
                self.missing -= len(piece)
                self.on_body(piece)
                if not self.missing:
                    self.on_message_complete()
                continue
            if self.phase == "idle":
                self.raw, head = self.server.heads.find(data)
                if head:
                    data = data[len(self.raw) :]
                    self.on_message_begin()
                    self.missing = head.length or 0
                    self._admit(head)
                    if not self.missing:
                        self.on_message_complete()
                    continue
            self._parse(data)
            return

    @property
    def dropping(self) -> int:
        """Bytes of a refused request that are still to come, of those that the parser does not see."""
        return self.missing if self.refused else 0

    def drop(self, size: int) -> None:
        """Go on after so many of these bytes."""
        self.missing -= size
        if not self.missing:
            self.on_message_complete()

    def _parse(self, data: bytes | memoryview) -> None:
        """Feed the parser.

        The parser stops after a head that offers another protocol. To decline the offer, feed the same head again without it.
        """
        while data and not self.closing:
            self.head_bytes += len(data)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data, plain = memoryview(data)[offer.args[0] :], self.plain
            else:
                return
            # Not in the handler, whose exception would hide a Refusal: `data_received` looks in the error's context.
            self.parser = httptools.HttpRequestParser(self)
            self._fresh()
            self.parser.feed_data(plain)

    # Called by the parser

    def on_message_begin(self) -> None:
        """Start a request."""
        self.phase, self.since = "head", self.arrived or self.server.now()

    def on_url(self, url: bytes) -> None:
        """Append a piece of the request's address."""
        self.url += url
        if len(self.url) > HEAD_BYTES:
            raise Refusal(414, f"the address is over {HEAD_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header, or a trailer after a chunked body."""
        name, value, headers = name.lower(), value.strip(b" \t"), self.headers
        if name in headers and self.phase == "head":
            value = messages.again(name, headers[name], value)
        headers[name] = value
        self.fields = fields = self.fields + len(name) + len(value)
        if fields > HEAD_BYTES or len(headers) > HEADERS:
            raise Refusal(431, f"the head or the trailers are over {HEADERS} lines or {HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """Ask the application whether it accepts the request, and how many bytes of body."""
        if self.parser.should_upgrade():
            self.plain = messages.without_offer(self.parser, self.url, self.headers)
            return
        self.head_bytes = self.fields = 0
        headers, self.headers = self.headers, {}
        self.phase = "body"
        head = heads.read(self.parser, self.url, headers)
        if self.raw:
            self.server.heads.remember(self.raw, head)
            self.raw = b""
        self._admit(head)

    def _admit(self, head: Head) -> None:
        """Ask the application whether it accepts the request, and how many bytes of body."""
        self.phase, self.head, headers = "body", head, head.headers
        try:
            if head.version == "1.1" and b"host" not in headers:
                raise Refusal(400, "HTTP/1.1 requires a Host header")
            self.limit = self.application.admit(head.method, head.path, headers, self.since)
            if head.length is None and headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
                raise Refusal(501, "the only Transfer-Encoding that this server supports is chunked", close=True)
            if head.length is not None and head.length > self.limit:
                large = Refusal(413, f"the body has {head.length} bytes, at most {self.limit} are accepted", close=True)
                raise self.application.about(head.method, head.path, large)
        except Refusal as refusal:
            if refusal.close:
                raise
            # Without its frames, which refer back to it: only the garbage collector could free that cycle.
            self.refused, self.limit = refusal.with_traceback(None), max(self.limit, self.server.discard)
        if headers.get(b"expect", b"").lower() == b"100-continue" and head.version != "1.0":
            if self.refused:
                raise self.refused
            self.waits = True
            self.go_on()

    def on_body(self, body: bytes) -> None:
        """Append a piece of the body."""
        self.head_bytes = 0  # from here it counts the bytes of chunk sizes and trailers
        self.size += len(body)
        if self.size > self.limit:
            assert self.head, "the body comes after the head"
            large = Refusal(413, f"the body has more than {self.limit} bytes")
            raise self.refused or self.application.about(self.head.method, self.head.path, large)
        if self.refused is None:
            self.body.append(body)

    def on_message_complete(self) -> None:
        """Begin the complete request, or park it."""
        if self.plain:
            return
        head, body = self.head, self.body
        assert head, "the message has a head"
        request: Request | Refusal
        if self.refused:
            request = self.refused
        else:
            content = body[0] if len(body) == 1 else b"".join(body)
            request = Request(head.method, head.path, head.query, head.headers, content, self.since)
        self._fresh()
        self.since = self.server.now()
        self.complete(head, request)
