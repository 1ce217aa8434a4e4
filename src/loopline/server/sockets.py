"""Sockets of the server's connections, which are read only for as long as the application has time to read.

An event loop reads every readable socket before anything else runs. In a flood that leaves little time for the models and
the server answers nothing, which is known as receive livelock (Mogul and Ramakrishnan, 1996). So the event loop watches only
one file descriptor, that of `readiness`. Sockets with unread data wait in a queue, and the application says after each read
whether to go on. What is not read waits in the system's buffers, and its sender cannot send more. A socket is named once for
all data that has arrived, so the time since which the data waits is known.

The queue is first come, first served, unless the application asks for the newest data: if the oldest has waited too long,
all requests would otherwise wait equally long, and all would be answered too late.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from loopline.server.logs import log
from loopline.server.messages import Application
from loopline.server.readiness import ENDED, READABLE, WRITABLE, readiness

FIRST_BYTES = 4 * 1024  # of the first read of a request: its head, and the whole of a small one
READ_BYTES = 64 * 1024  # of a further read
HIGH_BYTES = 64 * 1024  # unsent bytes above which a connection is asked to send no more
OLDEST_EVERY = 8  # one of so many reads takes the oldest data in any case, so that nothing waits for ever
ACCEPTS = 64  # new connections of one turn
ACCEPT_PAUSE = 1.0  # seconds until the next try if no connection can be accepted, as without free file descriptors


class Socket:
    """A connection's transport, with the methods of asyncio.Transport that `connection` uses."""

    __slots__ = (
        "closing",
        "connection",
        "ended",
        "ending",
        "poller",
        "queued",
        "reading",
        "since",
        "sock",
        "unsent",
        "urgent",
    )

    def __init__(self, poller: Poller, sock: socket.socket, connection: Any, *, urgent: bool) -> None:
        """connection: an asyncio.Protocol with an attribute `arrived`. urgent: whether it is read before others."""
        self.poller, self.sock, self.connection, self.urgent = poller, sock, connection, urgent
        self.unsent: deque[memoryview] = deque()
        self.since = 0.0  # when the unread data arrived, by the clock of time.monotonic()
        self.queued = False  # whether the socket waits to be read
        self.reading = True
        self.ending = False  # whether the end of the client's data has arrived
        self.ended = False  # whether `write_eof` was called
        self.closing = False

    def receive(self) -> None:
        """Read, and hand the data to the connection. What a refused request still sends is dropped without copying it."""
        if self.closing or not self.reading:
            return  # `resume_reading` looks again
        connection = self.connection
        connection.arrived = self.since
        for most in (FIRST_BYTES, READ_BYTES):
            asked, data = most, b""
            try:
                if dropped := connection.dropping:
                    asked = min(dropped, READ_BYTES)
                    size = self.sock.recv_into(self.poller.dropped, asked, socket.MSG_TRUNC)
                else:
                    data = self.sock.recv(asked)
                    size = len(data)
            except BlockingIOError:
                return
            except OSError as error:
                self._end_soon(error)
                return
            if not size:
                if not connection.eof_received():
                    self.close()
                return
            if data:
                connection.data_received(data)
            else:
                connection.drop(size)
            if (size < asked and not self.ending) or self.is_closing():
                return
        self.poller.queue(self, self.since)

    def write(self, data: bytes) -> None:
        """Send, or keep what the system does not take yet."""
        if self.closing:
            return
        if not self.unsent:
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._end_soon(error)
                return
            if sent == len(data):
                return
            self.unsent.append(memoryview(data)[sent:])
        else:
            self.unsent.append(memoryview(data))
        if sum(map(len, self.unsent)) > HIGH_BYTES:
            self.connection.pause_writing()

    def flush(self) -> None:
        """Send what was kept. Called when the system takes data again."""
        while self.unsent:
            try:
                sent = self.sock.send(self.unsent[0])
            except BlockingIOError:
                return
            except OSError as error:
                self._end_soon(error)
                return
            if sent < len(self.unsent[0]):
                self.unsent[0] = self.unsent[0][sent:]
            else:
                self.unsent.popleft()
        if self.ended:
            self._shut_down()
        if self.closing:
            self._end_soon(None)
        else:
            self.connection.resume_writing()

    def write_eof(self) -> None:
        """Tell the client that no more data follows what was written."""
        self.ended = True
        if not self.unsent:
            self._shut_down()

    def _shut_down(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def pause_reading(self) -> None:
        """Stop reading."""
        self.reading = False

    def resume_reading(self) -> None:
        """Read again, also what has arrived meanwhile."""
        self.reading = True
        self.poller.queue(self, time.monotonic())
        self.poller.wake()

    def is_closing(self) -> bool:
        """Whether the socket is closed, or will be once all is sent."""
        return self.closing

    def close(self) -> None:
        """Close once all is sent."""
        if not self.closing:
            self.closing = True
            if not self.unsent:
                self._end_soon(None)

    def abort(self) -> None:
        """Close at once."""
        self.unsent.clear()
        self._end_soon(None)

    def _end_soon(self, error: Exception | None) -> None:
        """Close after this callback, because the connection may be in the middle of something."""
        self.closing = True
        self.unsent.clear()
        self.poller.loop.call_soon(self.poller.end, self, error)


class Poller:
    """All sockets of a server."""

    def __init__(self, application: Application, connection: Callable[[], Any]) -> None:
        """connection: makes the protocol of a new connection. Needs a running event loop."""
        self.loop, self.application, self.connection = asyncio.get_running_loop(), application, connection
        self.readiness = readiness()
        self.sockets: dict[int, Socket] = {}
        self.unread: deque[Socket] = deque()  # sockets that may have unread data
        self.taken = 0  # reads so far
        self.dropped = bytearray(READ_BYTES)  # stands for data that nobody reads
        self.due = False  # whether a turn is scheduled
        self.listeners: dict[socket.socket, bool] = {}  # and whether it is urgent
        self.loop.add_reader(self.readiness.fileno(), self._turn)

    def listen(self, listener: socket.socket, *, urgent: bool = False) -> None:
        """Accept connections. urgent: they are read before those of other listeners."""
        listener.setblocking(False)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # its connections inherit this
        self.listeners[listener] = urgent
        self.loop.add_reader(listener.fileno(), self._accept, listener, urgent)

    def stop_listening(self) -> None:
        """Accept no more connections, except urgent ones."""
        for listener in [listener for listener, urgent in self.listeners.items() if not urgent]:
            del self.listeners[listener]
            self.loop.remove_reader(listener.fileno())
            listener.close()

    def _accept(self, listener: socket.socket, urgent: bool) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log("error", "no connection can be accepted for a second", error=str(error))
                self.loop.remove_reader(listener.fileno())
                self.loop.call_later(ACCEPT_PAUSE, self._accept_again, listener, urgent)
                return
            sock.setblocking(False)
            accepted = Socket(self, sock, self.connection(), urgent=urgent)
            self.sockets[sock.fileno()] = accepted
            self.readiness.add(sock.fileno())
            accepted.connection.connection_made(accepted)

    def _accept_again(self, listener: socket.socket, urgent: bool) -> None:
        if listener in self.listeners:
            self.loop.add_reader(listener.fileno(), self._accept, listener, urgent)

    def queue(self, waiting: Socket, since: float) -> None:
        """Read this socket when its turn comes. since: when its data arrived."""
        if not waiting.queued:
            waiting.queued, waiting.since = True, since
            (self.unread.appendleft if waiting.urgent else self.unread.append)(waiting)

    def wake(self) -> None:
        """Have a turn soon if there is something to read."""
        if self.unread and not self.due:
            self.due = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Read for as long as the application wants, and let it work."""
        self.due = False
        start = time.monotonic()
        for number, event in self.readiness.news():
            news = self.sockets[number]
            if event & WRITABLE and news.unsent:
                news.flush()
            if event & (READABLE | ENDED):
                if event & ENDED:
                    news.ending = True
                self.queue(news, start)
        unread, hungry = self.unread, self.application.hungry
        spent = 0.0
        while unread and hungry(spent):
            self.taken += 1
            newest = self.taken % OLDEST_EVERY and self.application.newest(start - unread[0].since)
            first = unread.pop() if newest else unread.popleft()
            first.queued = False
            first.receive()
            spent = time.monotonic() - start
        self.application.turn(spent)
        if unread and hungry(0.0):
            self.wake()

    def end(self, ended: Socket, error: Exception | None) -> None:
        """Close a socket, and tell its connection."""
        number = ended.sock.fileno()
        if number < 0:
            return  # this happened before
        with suppress(OSError):
            self.readiness.remove(number)
        del self.sockets[number]
        ended.sock.close()
        ended.connection.connection_lost(error)
