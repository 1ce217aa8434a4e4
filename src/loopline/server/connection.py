"""One client's connection: it parses requests, bounds them, and answers them in order. See `http`."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import httptools

from loopline.server import heads, messages
from loopline.server.messages import Cancel, Head, Headers, Listener, Refusal, Request, Response, encode

HEAD_BYTES = 32 * 1024  # most bytes of a request's first line and headers, and again of its trailers
HEADERS = 100  # most headers of a request, and again most trailers
PIPELINED = 16  # most requests of one connection that are answered at a time or begun in one turn of the event loop
HEAD_SECONDS = 10.0  # a client's time to send the head
BODY_SECONDS = 60.0  # a client's time to send the body
IDLE_SECONDS = 75.0  # longest pause between two requests
LINGER_SECONDS, LINGER_BYTES = 30.0, 64 << 20  # limits on reading a refused request that the client keeps sending


class _Slot:
    """A request in progress. A connection's answers are sent in the order of its slots."""

    __slots__ = ("cancel", "connection", "head", "response")

    def __init__(self, connection: Connection, head: Head | None) -> None:
        """head: None if it cannot be read; then the connection ends with the answer."""
        self.connection, self.head = connection, head
        self.response: Response | None = None
        self.cancel: Cancel | None = None

    def respond(self, response: Response) -> None:
        """Take the answer, once."""
        if self.response is None:
            self.response = response
            self.cancel = None  # it refers back to this slot, and a cycle would need the garbage collector
            self.connection.flush()


class Connection(asyncio.Protocol):
    """One client's connection. httptools calls the `on_...` methods while it parses."""

    def __init__(self, server: Listener) -> None:
        """server: holds the application and all connections."""
        self.server, self.application = server, server.application
        self.parser = httptools.HttpRequestParser(self)
        self.transport: Any = None
        self.slots: deque[_Slot] = deque()
        # Requests that were read but not begun: at most those of one read.
        self.parked: deque[tuple[Head | None, Request | Refusal]] = deque()
        self.begun = 0  # requests begun in this turn of the event loop
        self.pumping = False  # whether `_pump` is scheduled
        self.closing = False  # whether further requests are ignored
        self.unread = False  # whether a request was refused before its end, so that more of it may arrive
        self.clogged = False  # whether the client does not read its answers
        self.reading = True
        self.arrived = 0.0  # when the data that is being read arrived; 0 if the transport does not tell
        self._fresh()
        self.since = server.now()  # start of the current phase: idle, head, body or lingering

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

    # Called by the transport

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        self.transport = transport
        self.server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """See asyncio.Protocol. Cancels the requests in progress."""
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
        self.begun = 0
        try:
            self._feed(data)
        except Refusal as refusal:
            self._fail(refusal.with_traceback(None))
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, Refusal):
                raise
            self._fail(cause)
        except httptools.HttpParserError as error:
            self._fail(Refusal(400, f"the request is not valid HTTP/1.1: {error}"))
        else:
            if self.head_bytes > HEAD_BYTES and self.phase != "idle":
                self._fail(Refusal(431, f"the head or the trailers are over {HEAD_BYTES} bytes"))

    def _feed(self, data: bytes) -> None:
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

    def eof_received(self) -> bool:
        """See asyncio.Protocol. A client that has closed its side may still wait for answers."""
        self.closing, self.unread = True, False
        return bool(self.slots or self.parked)

    def pause_writing(self) -> None:
        """See asyncio.Protocol. The client does not read its answers, so stop reading its requests."""
        self.clogged = True
        self._read_on()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self.clogged = False
        self._pump_soon()
        self._read_on()

    def _read_on(self) -> None:
        """Resume or pause reading. Read only if all earlier requests have begun and the client reads its answers."""
        read = (not self.parked and not self.clogged) or self.phase == "lingering"
        if read != self.reading and not self.transport.is_closing():
            self.reading = read
            (self.transport.resume_reading if read else self.transport.pause_reading)()

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
            self._go_on()

    def _go_on(self) -> None:
        """Send `100 Continue`, unless earlier answers must be sent first."""
        if not self.slots and not self.parked:
            self.waits = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

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
        if self._full():
            self.parked.append((head, request))
            self._read_on()
            self._pump_soon()
        else:
            self._begin(head, request)

    def _full(self) -> bool:
        return bool(self.parked) or self.clogged or len(self.slots) >= PIPELINED or self.begun >= PIPELINED

    def _pump_soon(self) -> None:
        if self.parked and not self.pumping:
            self.pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Begin some parked requests, PIPELINED at most, so that one client's pipeline does not delay other clients."""
        self.pumping, self.begun = False, 0
        while self.parked and not self.clogged and max(len(self.slots), self.begun) < PIPELINED:
            self._begin(*self.parked.popleft())
        if self.begun >= PIPELINED:
            self._pump_soon()
        self._read_on()
        if self.closing and not self.parked:
            self.flush()

    def _begin(self, head: Head | None, request: Request | Refusal) -> None:
        self.begun += 1
        slot = _Slot(self, head)
        self.slots.append(slot)
        if isinstance(request, Refusal):
            return slot.respond(self.application.refusal(request))
        try:
            slot.cancel = self.application.answer(request, slot.respond)
        except Refusal as refusal:
            slot.respond(self.application.refusal(refusal))

    def _fail(self, refusal: Refusal, *, unread: bool = True) -> None:
        """Send the pending answers and the refusal, then close, because the rest of the stream cannot be parsed."""
        self.closing, self.unread, self.size = True, unread, 0
        if self._full():
            self.parked.append((None, refusal))
            self._pump_soon()
        else:
            self._begin(None, refusal)

    def flush(self) -> None:
        """Send all answers whose turn has come, in one piece."""
        slots, content = self.slots, []
        while slots and (response := slots[0].response) is not None:
            head = slots.popleft().head
            last = head is None or not head.keep_alive or response.close or self.server.draining
            connection = b"close" if last else b"keep-alive" if head and head.say_kept else None
            content.append(encode(response, connection, head))
            if last:
                self.closing = True
                for behind in slots:
                    if behind.response is None and behind.cancel:
                        behind.cancel()
                slots.clear()
                self.parked.clear()
                self._send(content)
                self._end()
                return
        self._send(content)
        if self.parked:
            self._pump_soon()
        elif not slots and (self.closing or self.waits):
            (self._end if self.closing else self._go_on)()

    def _send(self, content: list[bytes]) -> None:
        if content and not self.transport.is_closing():
            self.transport.write(content[0] if len(content) == 1 else b"".join(content))

    def _end(self) -> None:
        """Close. First read what the client still sends, because a TCP reset would discard an unread answer (RFC 9112, 9.6)."""
        if not self.unread or self.server.draining:
            self.transport.close()
        elif self.phase != "lingering" and not self.transport.is_closing():
            self.phase, self.since = "lingering", self.server.now()
            self.transport.write_eof()
            self._read_on()

    # Called by the server

    @property
    def idle(self) -> bool:
        """Whether no request is being read or answered."""
        return self.phase == "idle" and not self.slots and not self.parked

    def sweep(self, now: float) -> None:
        """Close the connection if its current phase has taken too long. now: monotonic seconds."""
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
