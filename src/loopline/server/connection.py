"""One client's connection: requests are parsed, bounded and answered in their order. See `http`."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import httptools

from loopline.server import messages
from loopline.server.messages import Cancel, Headers, Listener, Refusal, Request, Response, acceptable, encode

HEAD_BYTES = 32 * 1024  # of a request's first line and headers, and again of its trailers
HEADERS = 100
PIPELINED = 16  # requests of one connection that are answered at a time, and in one turn of the loop
HEAD_SECONDS = 10.0  # to send the head
BODY_SECONDS = 60.0  # to send the body
IDLE_SECONDS = 75.0  # between two requests
LINGER_SECONDS, LINGER_BYTES = 30.0, 64 << 20  # of a refused request that the client goes on sending


class _Slot:
    """A request on its way; the answers of a connection leave in the order of its slots."""

    __slots__ = ("cancel", "compress", "head_only", "keep_alive", "response", "say_kept")

    def __init__(self) -> None:
        self.response: Response | None = None
        self.cancel: Cancel | None = None
        self.keep_alive = True
        self.say_kept = False  # HTTP/1.0: without a word the client waits for the connection's end
        self.head_only = False
        self.compress: bytes | None = None


class Connection(asyncio.Protocol):
    """One client. httptools calls the `on_...` methods while it is fed."""

    def __init__(self, server: Listener) -> None:
        """server: knows the application and all connections."""
        self.server, self.application = server, server.application
        self.parser = httptools.HttpRequestParser(self)
        self.transport: Any = None
        self.slots: deque[_Slot] = deque()
        # Read, and not begun; at most what one read brought.
        self.parked: deque[tuple[_Slot, Request | Refusal]] = deque()
        self.begun = 0  # in this turn of the event loop
        self.pumping = False  # `_pump` is due
        self.closing = False  # nothing more is taken in
        self.unread = False  # a request was refused before its end, so more of it may come
        self.clogged = False  # the client does not read its answers
        self.reading = True
        self._fresh()
        self.since = server.now()  # of the current phase: idle, head, body or lingering

    def _fresh(self) -> None:
        self.url = b""
        self.headers: Headers = {}  # that are read now: of the head, then the trailers, which nobody looks at
        self.asked: Headers = {}  # of the head, once it is whole
        self.body: list[bytes] = []
        self.head, self.fields, self.size, self.limit = 0, 0, 0, 0
        self.phase = "idle"
        self.refused: Refusal | None = None
        self.plain = b""  # the head of a request that offers another protocol, without the offer
        self.waits = False  # the client sends the body once it is told to
        self.slot = _Slot()

    # The transport's side

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        self.transport = transport
        self.server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """See asyncio.Protocol. What the client asked for is no longer wanted."""
        self.closing = True
        for slot in self.slots:
            if slot.response is None and slot.cancel:
                slot.cancel()
        self.slots.clear()
        self.parked.clear()
        self.server.closed(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.closing:
            self.size += len(data)
            if self.size > LINGER_BYTES:
                self.transport.abort()
            return
        self.application.turn()
        self.begun = 0
        try:
            self._feed(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, Refusal):
                raise
            self._fail(cause)
        except httptools.HttpParserError as error:
            self._fail(Refusal(400, f"this is not HTTP/1.1: {error}"))
        else:
            if self.head > HEAD_BYTES and self.phase != "idle":
                self._fail(Refusal(431, f"a head or trailers over {HEAD_BYTES} bytes"))

    def _feed(self, data: bytes) -> None:
        """Hand the parser what came.

        It stops behind a head that offers another protocol. The offer is declined: the same head goes in again without it.
        """
        left: bytes | memoryview = data
        while left and not self.closing:
            self.head += len(left)
            try:
                self.parser.feed_data(left)
                break
            except httptools.HttpParserUpgrade as offer:
                left, plain = memoryview(left)[offer.args[0] :], self.plain
            # Not in the handler above: its exception would hide a Refusal, which `data_received` finds as the error's context.
            self.parser = httptools.HttpRequestParser(self)
            self._fresh()
            self.parser.feed_data(plain)

    def eof_received(self) -> bool:
        """See asyncio.Protocol. A client that has closed its side may still wait for its answers."""
        self.closing, self.unread = True, False
        return bool(self.slots or self.parked)

    def pause_writing(self) -> None:
        """See asyncio.Protocol: the client does not read its answers, so it is not read from."""
        self.clogged = True
        self._read_on()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self.clogged = False
        self._pump_soon()
        self._read_on()

    def _read_on(self) -> None:
        """Read from the client if what it sent before has been begun, and it reads what it gets."""
        wanted = (not self.parked and not self.clogged) or self.phase == "lingering"
        if wanted != self.reading and not self.transport.is_closing():
            self.reading = wanted
            (self.transport.resume_reading if wanted else self.transport.pause_reading)()

    # The parser's side

    def on_message_begin(self) -> None:
        """A request starts."""
        self.phase, self.since = "head", self.server.now()

    def on_url(self, url: bytes) -> None:
        """A piece of the first line's target."""
        self.url += url
        if len(self.url) > HEAD_BYTES:
            raise Refusal(414, f"the address is over {HEAD_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer behind a chunked body."""
        name, value, headers = name.lower(), value.strip(b" \t"), self.headers
        if name in headers and self.phase == "head":
            value = messages.again(name, headers[name], value)
        headers[name] = value
        self.fields = fields = self.fields + len(name) + len(value)
        if fields > HEAD_BYTES or len(headers) > HEADERS:
            raise Refusal(431, f"a head or trailers over {HEADERS} lines or {HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """Is this request welcome, and how long may it be?"""
        if self.parser.should_upgrade():
            self.plain = messages.without_offer(self.parser, self.url, self.headers)
            return
        self.head = self.fields = 0
        self.phase = "body"
        slot, headers = self.slot, self.headers
        self.asked, self.headers = headers, {}
        slot.keep_alive = self.parser.should_keep_alive()
        said = b"connection" in headers or b"proxy-connection" in headers
        slot.say_kept = said and self.parser.get_http_version() == "1.0"
        self.method = self.parser.get_method().decode("ascii")
        slot.head_only = self.method == "HEAD"
        if accepted := headers.get(b"accept-encoding"):
            slot.compress = acceptable(accepted)
        try:
            self.parsed = httptools.parse_url(self.url)
            self.path = self.parsed.path.decode("ascii") if self.parsed.path else "/"
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            raise Refusal(400, "the address cannot be read") from None
        try:
            if b"host" not in headers and self.parser.get_http_version() == "1.1":
                raise Refusal(400, "HTTP/1.1 wants a Host header")
            self.limit = self.application.admit(self.method, self.path, headers)
            length = headers.get(b"content-length")
            if length is None and headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
                raise Refusal(501, "Transfer-Encoding: only chunked is understood", close=True)
            if length is not None and int(length) > self.limit:
                large = Refusal(413, f"a body of {int(length)} bytes, at most {self.limit} are accepted", close=True)
                raise self.application.about(self.method, self.path, large)
        except Refusal as refusal:
            if refusal.close:
                raise
            # Kept without its frames, which lead back to it: the collector would have to find that circle.
            self.refused, self.limit = refusal.with_traceback(None), max(self.limit, self.server.discard)
        if headers.get(b"expect", b"").lower() == b"100-continue" and self.parser.get_http_version() != "1.0":
            if self.refused:
                raise self.refused
            self.waits = True
            self._go_on()

    def _go_on(self) -> None:
        """Ask for the body, unless answers to earlier requests must leave first."""
        if not self.slots and not self.parked:
            self.waits = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self.head = 0  # bytes since the last piece: chunks' sizes, then trailers
        self.size += len(body)
        if self.size > self.limit:
            large = Refusal(413, f"a body of more than {self.limit} bytes")
            raise self.refused or self.application.about(self.method, self.path, large)
        if self.refused is None:
            self.body.append(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self.plain:
            return
        slot, body = self.slot, self.body
        asked: Request | Refusal
        if self.refused:
            asked = self.refused
        else:
            whole = body[0] if len(body) == 1 else b"".join(body)
            asked = Request(self.method, self.path, self.parsed.query or b"", self.asked, whole, self.since)
        self._fresh()
        self.since = self.server.now()
        if self._full():
            self.parked.append((slot, asked))
            self._read_on()
            self._pump_soon()
        else:
            self._begin(slot, asked)

    def _full(self) -> bool:
        return bool(self.parked) or self.clogged or len(self.slots) >= PIPELINED or self.begun >= PIPELINED

    def _pump_soon(self) -> None:
        if self.parked and not self.pumping:
            self.pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Begin what is parked, some at a time, so that one client's pipeline does not hold up the others."""
        self.pumping, self.begun = False, 0
        while self.parked and not self.clogged and max(len(self.slots), self.begun) < PIPELINED:
            self._begin(*self.parked.popleft())
        if self.begun >= PIPELINED:
            self._pump_soon()
        self._read_on()
        if self.closing and not self.parked:
            self._flush()

    def _begin(self, slot: _Slot, asked: Request | Refusal) -> None:
        self.begun += 1
        self.slots.append(slot)

        def respond(response: Response) -> None:
            if slot.response is None:
                slot.response = response
                slot.cancel = None  # it leads back to this slot: without a circle the collector has nothing to do
                self._flush()

        if isinstance(asked, Refusal):
            return respond(self.application.refusal(asked))
        try:
            slot.cancel = self.application.answer(asked, respond)
        except Refusal as refusal:
            respond(self.application.refusal(refusal))

    def _fail(self, refusal: Refusal, *, unread: bool = True) -> None:
        """Answer what can still be answered, then close: the stream cannot be trusted any more."""
        self.closing, self.unread, self.size = True, unread, 0
        slot = _Slot()
        slot.keep_alive = False
        if self._full():
            self.parked.append((slot, refusal))
            self._pump_soon()
        else:
            self._begin(slot, refusal)

    def _flush(self) -> None:
        """Send every answer that is next in line."""
        slots, transport = self.slots, self.transport
        while slots and (response := slots[0].response) is not None:
            slot = slots.popleft()
            last = not slot.keep_alive or response.close or self.server.draining
            if not transport.is_closing():
                connection = b"close" if last else b"keep-alive" if slot.say_kept else None
                transport.write(encode(response, connection, compression=slot.compress, head_only=slot.head_only))
            if last:
                self.closing = True
                for behind in slots:
                    if behind.response is None and behind.cancel:
                        behind.cancel()
                slots.clear()
                self.parked.clear()
                self._end()
                return
        if self.parked:
            self._pump_soon()
        elif not slots and (self.closing or self.waits):
            (self._end if self.closing else self._go_on)()

    def _end(self) -> None:
        """Close. What the client still sends is read first: TCP would take back the answer that it has not read (RFC 9112, 9.6)."""
        if not self.unread or self.server.draining:
            self.transport.close()
        elif self.phase != "lingering" and not self.transport.is_closing():
            self.phase, self.since = "lingering", self.server.now()
            self.transport.write_eof()
            self._read_on()

    # The server's side

    @property
    def idle(self) -> bool:
        """Nothing is being read or answered."""
        return self.phase == "idle" and not self.slots and not self.parked

    def sweep(self, now: float) -> None:
        """Close what has waited too long."""
        waited = now - self.since
        if self.phase == "lingering" and waited > LINGER_SECONDS:
            self.transport.abort()
        if self.closing or self.slots or self.parked:
            return
        if self.phase == "idle":
            if waited > IDLE_SECONDS:
                self.transport.close()
        elif waited > (HEAD_SECONDS if self.phase == "head" else BODY_SECONDS):
            self._fail(Refusal(408, "the request took too long to arrive"), unread=self.phase == "body")
