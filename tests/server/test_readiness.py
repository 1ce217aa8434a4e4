"""News of sockets: once for all data that has arrived, on Linux and, as far as a stand-in for kqueue can tell, on macOS."""

import select
import socket
import sys
from types import SimpleNamespace

import pytest

from loopline.server.readiness import ENDED, READABLE, WRITABLE, Epoll, Kqueue


@pytest.mark.skipif(sys.platform != "linux", reason="epoll is of Linux")
def test_epoll_names_a_socket_once_for_all_data_that_has_arrived():
    here, there = socket.socketpair()
    with here, there:
        watcher = Epoll()
        watcher.add(here.fileno())
        assert [what & (READABLE | ENDED) for _, what in watcher.news()] == [0], "it can be written to"
        there.send(b"a")
        ((number, what),) = watcher.news()
        assert (number, what & (READABLE | ENDED)) == (here.fileno(), READABLE)
        assert watcher.news() == [], "what was said is not said again"
        there.send(b"b")
        assert [what & READABLE for _, what in watcher.news()] == [READABLE]
        there.shutdown(socket.SHUT_WR)
        ((_, what),) = watcher.news()
        assert what & ENDED and what & READABLE
        assert select.select([watcher.fileno()], [], [], 0)[0] == []
        watcher.remove(here.fileno())
        there.close()
        assert watcher.news() == []


def test_kqueue_is_asked_for_edges_and_its_events_mean_the_same():
    asked, events = [], []

    def control(changes, most, timeout=None):
        del timeout
        asked.extend(changes or [])
        return events[:most]

    queue = SimpleNamespace(control=control, fileno=lambda: 9)
    constants = {
        "KQ_FILTER_READ": -1,
        "KQ_FILTER_WRITE": -2,
        "KQ_EV_ADD": 1,
        "KQ_EV_DELETE": 2,
        "KQ_EV_CLEAR": 32,
        "KQ_EV_EOF": 32768,
    }
    system = SimpleNamespace(kqueue=lambda: queue, kevent=lambda *values: values, **constants)
    watcher = Kqueue(system)
    watcher.add(5)
    watcher.remove(5)
    assert asked == [(5, -1, 33), (5, -2, 33), (5, -1, 2), (5, -2, 2)]
    event = lambda kind, flags=0: SimpleNamespace(ident=5, filter=kind, flags=flags)  # noqa: E731
    events[:] = [event(-1), event(-2), event(-1, 32768)]
    assert watcher.news() == [(5, READABLE), (5, WRITABLE), (5, READABLE | ENDED)]
