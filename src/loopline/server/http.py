"""An HTTP/1.1 server: httptools parses the requests, an application answers them. It has no code about models.

It can refuse a request before reading its body. Heads, bodies, requests in flight and times are bounded, so a client can
stall only itself. The protocol is in `connection`, the order of reading in `sockets`.
"""

from __future__ import annotations

import asyncio
import socket
import time

from loopline.server.connection import Connection
from loopline.server.heads import HeadCache
from loopline.server.messages import Application
from loopline.server.sockets import Poller

SWEEP_SECONDS = 1.0  # between two looks for connections that have waited too long


class Server:
    """All connections of one application, and their orderly end."""

    def __init__(self, application: Application, *, discard: int = 1 << 20) -> None:
        """discard: bytes of a refused body that are read to keep the connection; after more it is closed."""
        self.application, self.discard = application, discard
        self.connections: set[Connection] = set()
        self.heads = HeadCache()
        self.poller: Poller | None = None
        self.draining = False
        self.now = time.monotonic
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    def protocol(self) -> Connection:
        """Make a connection."""
        return Connection(self)

    def listen(self, listener: socket.socket, *, urgent: bool = False) -> None:
        """Accept connections in the running event loop. urgent: they are read before those of other listeners."""
        if self.poller is None:
            self.poller = Poller(self.application, self.protocol)
            self.application.wakes(self.poller.wake)
        self.poller.listen(listener, urgent=urgent)

    def opened(self, connection: Connection) -> None:
        """Add a connection. Timeouts are checked once a second while there are connections; otherwise the server sleeps."""
        self.connections.add(connection)
        self._empty.clear()
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def closed(self, connection: Connection) -> None:
        """Remove a connection."""
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
        """Finish the requests in flight and close all connections. Returns True if no request was cut off.

        A connection is closed with its next answer. Idle ones are closed only after `idle_seconds`, because a request may
        already be on the wire. Requests that are not done after `seconds` are cut off.
        """
        self.draining = True
        if self.poller:
            self.poller.stop_listening()
        end = self.now() + seconds
        quiet = min(self.now() + idle_seconds, end)
        for connection in [c for c in self.connections if c.phase == "lingering"]:
            connection.transport.abort()  # its answer was sent
        while self.connections and self.now() < end:
            if self.now() >= quiet:
                for connection in [c for c in self.connections if c.idle]:
                    connection.transport.close()
            try:
                await asyncio.wait_for(self._empty.wait(), 0.05)
            except TimeoutError:
                continue
        complete = not self.connections
        for connection in list(self.connections):
            connection.transport.abort()
        return complete
