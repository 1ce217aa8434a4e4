"""News of sockets, once for all data that has arrived (edge-triggered): by epoll on Linux, by kqueue on macOS and BSD."""

from __future__ import annotations

import select
from contextlib import suppress
from typing import Any, Protocol

# What happened to a socket, in the numbers that Linux has for it.
READABLE, WRITABLE = 0x001, 0x004
ENDED = 0x2000 | 0x010 | 0x008  # the peer sends no more, or the connection is broken
EDGES = 1 << 31
MOST_NEWS = 1024  # of one look


class Readiness(Protocol):
    """Watches sockets by their file descriptors."""

    def fileno(self) -> int:
        """A file descriptor that is readable while there is news."""

    def add(self, number: int) -> None:
        """Watch a socket."""

    def remove(self, number: int) -> None:
        """Watch it no longer."""

    def news(self) -> list[tuple[int, int]]:
        """The sockets that have news, and what: any of READABLE, WRITABLE and ENDED. Does not wait."""


class Epoll:
    """See Readiness."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self.epoll = select.epoll()
        self.fileno, self.remove = self.epoll.fileno, self.epoll.unregister

    def add(self, number: int) -> None:
        """See Readiness."""
        self.epoll.register(number, READABLE | WRITABLE | ENDED | EDGES)

    def news(self) -> list[tuple[int, int]]:
        """See Readiness."""
        return self.epoll.poll(0, MOST_NEWS)


class Kqueue:
    """See Readiness."""

    def __init__(self, system: Any = select) -> None:
        """system: the module `select` of a system that has kqueue."""
        self.system, self.queue = system, system.kqueue()
        self.fileno = self.queue.fileno

    def _change(self, number: int, flags: int) -> None:
        for kind in (self.system.KQ_FILTER_READ, self.system.KQ_FILTER_WRITE):
            with suppress(FileNotFoundError):  # removed already
                self.queue.control([self.system.kevent(number, kind, flags)], 0)

    def add(self, number: int) -> None:
        """See Readiness."""
        self._change(number, self.system.KQ_EV_ADD | self.system.KQ_EV_CLEAR)

    def remove(self, number: int) -> None:
        """See Readiness."""
        self._change(number, self.system.KQ_EV_DELETE)

    def news(self) -> list[tuple[int, int]]:
        """See Readiness."""
        changes = []
        for event in self.queue.control(None, MOST_NEWS, 0):
            what = WRITABLE if event.filter == self.system.KQ_FILTER_WRITE else READABLE
            if event.flags & self.system.KQ_EV_EOF:
                what |= READABLE | ENDED  # reading tells how it ended
            changes.append((event.ident, what))
        return changes


def readiness() -> Readiness:
    """The best that the system has."""
    return Epoll() if hasattr(select, "epoll") else Kqueue()
