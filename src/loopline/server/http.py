"""HTTP/1.1 on an asyncio protocol: httptools parses, an application answers. Nothing here knows of models.

An ASGI server spends 50 us on a request, this 20 us, and it can refuse a request before its body is read. Requests of one
connection are answered in their order. Heads, bodies, requests in flight and times are bounded, so a client can stall
only itself. `connection` has the protocol.
"""

from __future__ import annotations

import asyncio
import time

from loopline.server.connection import Connection
from loopline.server.messages import Application

SWEEP_SECONDS = 1.0


class Server:
    """All connections of one listener, and their end."""

    def __init__(self, application: Application, *, discard: int = 1 << 20) -> None:
        """discard: bytes of an unwelcome body that are read to keep the connection; past them it is closed."""
        self.application, self.discard = application, discard
        self.connections: set[Connection] = set()
        self.draining = False
        self.now = time.monotonic
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    def protocol(self) -> Connection:
        """The factory that `loop.create_server` takes."""
        return Connection(self)

    def opened(self, connection: Connection) -> None:
        """A client came. While there is one, clocks are looked at once a second; an empty server sleeps."""
        self.connections.add(connection)
        self._empty.clear()
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def closed(self, connection: Connection) -> None:
        """A client went."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def _sweep(self) -> None:
        self._sweeper = None
        now = self.now()
        for connection in list(self.connections):
            connection.sweep(now)
        if self.connections:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    async def drain(self, *, idle_seconds: float, seconds: float) -> bool:
        """Finish what is in flight, then close. True if nothing was cut off.

        A kept connection is closed by its next answer, or after `idle_seconds` without a request: closed at once, it could
        meet a request that is already on the wire. What is not done after `seconds` is cut off.
        """
        self.draining = True
        end = self.now() + seconds
        quiet = min(self.now() + idle_seconds, end)
        for connection in [c for c in self.connections if c.phase == "lingering"]:
            connection.transport.abort()  # it has its answer
        while self.connections and self.now() < end:
            if self.now() >= quiet:
                for connection in [c for c in self.connections if c.idle]:
                    connection.transport.close()
            try:
                await asyncio.wait_for(self._empty.wait(), 0.05)
            except TimeoutError:
                continue
        whole = not self.connections
        for connection in list(self.connections):
            connection.transport.abort()
        return whole
