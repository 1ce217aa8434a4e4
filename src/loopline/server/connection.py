"""One client's connection: it begins requests in their order, and answers them in the same order. See `http`."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import httptools

from loopline.server.incoming import HEAD_BYTES, Incoming
from loopline.server.messages import Cancel, Head, Listener, Refusal, Request, Response, encode

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


class Connection(Incoming, asyncio.Protocol):
    """One client's connection."""

    __slots__ = ("begun", "clogged", "parked", "pumping", "reading", "slots", "transport", "unread")

    def __init__(self, server: Listener) -> None:
        """server: holds the application and all connections."""
        super().__init__(server)
        self.transport: Any = None
        self.slots: deque[_Slot] = deque()
        # Requests that were read but not begun: at most those of one read.
        self.parked: deque[tuple[Head | None, Request | Refusal]] = deque()
        self.begun = 0  # requests begun in this turn of the event loop
        self.pumping = False  # whether `_pump` is scheduled
        self.unread = False  # whether a request was refused before its end, so that more of it may arrive
        self.clogged = False  # whether the client does not read its answers
        self.reading = True

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
            self.feed(data)
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

    def go_on(self) -> None:
        """Send `100 Continue`, unless earlier answers must be sent first."""
        if not self.slots and not self.parked:
            self.waits = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def complete(self, head: Head, request: Request | Refusal) -> None:
        """Begin a request, or park it."""
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
            (self._end if self.closing else self.go_on)()

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
