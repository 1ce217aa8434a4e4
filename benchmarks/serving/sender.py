"""An open loop: `python sender.py JSON` sends requests on a schedule and prints a summary of each phase as JSON.

Latency counts from when a request was due, even if it was sent later, so a slow server cannot slow its own test down. A
connection carries one request at a time. A request without a free connection waits, and is dropped after `patience` seconds.
The sender never sleeps, since it has a core to itself and a timer of milliseconds would be coarser than the latencies.
"""

from __future__ import annotations

import gc
import json
import random
import select
import socket
import sys
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LINGER = 1.0  # seconds after the end in which the last answers are read
SLICE = 0.1  # seconds of a slice of the time line
LIMITS = (10, 100, 250, 1000)  # ms; answers and refusals are counted within each
LOST, UNSENT = 0, -1  # in place of a status: the connection broke or no answer came; no connection was free


class Client:
    """A keep-alive connection. due: when the request that it carries was due; 0 while it is free."""

    __slots__ = ("buffer", "due", "sock")

    def __init__(self, port: int) -> None:
        """Connect to a port of the loopback."""
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
        self.sock.setblocking(False)
        self.buffer, self.due = b"", 0.0


def complete(buffer: bytes) -> int:
    """The status of the answer in `buffer`, 0 while a part is missing. Answers must have a Content-Length."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return 0
    head = buffer[:end].lower()
    start = head.find(b"content-length:") + 15
    stop = head.find(b"\r\n", start)
    length = int(head[start : stop if stop > 0 else None])
    return int(buffer[9:12]) if len(buffer) >= end + 4 + length else 0


Answer = tuple[float, float, int]  # due and latency in seconds, and the status, LOST or UNSENT


class Pool:
    """The connections. answers: the outcome of each request until now."""

    def __init__(self, port: int, connections: int) -> None:
        """Open all connections."""
        self.port, self.poll = port, select.epoll()
        self.clients: dict[int, Client] = {}
        self.free: deque[Client] = deque()
        self.answers: list[Answer] = []
        for _ in range(connections):
            self.connect()

    def connect(self) -> None:
        """Open a connection."""
        client = Client(self.port)
        self.clients[client.sock.fileno()] = client
        self.poll.register(client.sock, select.EPOLLIN)
        self.free.append(client)

    def drop(self, client: Client) -> None:
        """Replace a broken connection; the request that it carried is lost."""
        if client.due:
            self.answers.append((client.due, LINGER, LOST))
        else:
            self.free.remove(client)
        self.poll.unregister(client.sock)
        del self.clients[client.sock.fileno()]
        client.sock.close()
        self.connect()

    def ask(self, due: float, request: bytes) -> None:
        """Send a request on a free connection."""
        client = self.free.popleft()
        client.due = due
        try:
            if client.sock.send(request) < len(request):
                self.drop(client)
        except OSError:
            self.drop(client)

    def collect(self) -> None:
        """Read the answers that have arrived."""
        for number, _ in self.poll.poll(0, 64):
            client = self.clients[number]
            try:
                data = client.sock.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                self.drop(client)
                continue
            client.buffer += data
            if status := complete(client.buffer):
                self.answers.append((client.due, time.perf_counter() - client.due, status))
                client.buffer, client.due = b"", 0.0
                self.free.append(client)


def send(
    pool: Pool, request: bytes, phases: list[tuple[float, float]], patience: float, seed: int | None = None
) -> list[list[Answer]]:
    """Send all phases, and return the outcomes of the requests by the phase in which they were due."""
    answers, waiting = pool.answers, deque[float]()
    start = time.perf_counter()
    schedule = times(start, phases, seed)
    end = start + sum(seconds for _, seconds in phases)
    upcoming = next(schedule, None)
    while (now := time.perf_counter()) < end or (
        (upcoming is not None or waiting or len(pool.free) < len(pool.clients)) and now < end + LINGER
    ):
        while upcoming is not None and upcoming <= now:
            waiting.append(upcoming)
            upcoming = next(schedule, None)
        while waiting and now - waiting[0] > patience:
            answers.append((waiting.popleft(), LINGER, UNSENT))
        while waiting and pool.free:
            pool.ask(waiting.popleft(), request)
        pool.collect()
    # If the machine stood still until the end, some requests are still to come: they count too.
    answers += [(due, LINGER, UNSENT) for due in (*waiting, *([] if upcoming is None else [upcoming]), *schedule)]
    answers += [(client.due, LINGER, LOST) for client in pool.clients.values() if client.due]
    bounds = [start + sum(seconds for _, seconds in phases[: place + 1]) for place in range(len(phases))]
    by_phase: list[list[Answer]] = [[] for _ in phases]
    for answer in answers:
        by_phase[min(bisect_right(bounds, answer[0]), len(phases) - 1)].append(answer)
    return by_phase


def times(start: float, phases: list[tuple[float, float]], seed: int | None = None) -> Iterator[float]:
    """Yield when each request is due: evenly spaced, or as a Poisson process if there is a seed."""
    rng = random.Random(seed)  # noqa: S311 - a schedule is no secret
    for rate, seconds in phases:
        if seed is None:
            for count in range(int(rate * seconds)):
                yield start + count / rate
        else:
            due = start
            while (due := due + rng.expovariate(rate)) < start + seconds:
                yield due
        start += seconds


def percentile(ordered: list[float], share: float) -> float:
    """A percentile of sorted seconds, in milliseconds; 0 if there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3 if ordered else 0.0


def summary(answers: list[Answer], seconds: float) -> dict[str, Any]:
    """Requests a second by outcome, percentiles in ms, and the time line: [answered, others, median ms] of each slice.

    A request belongs to the slice in which it was due. `within` and `refused_within` count a second what came within each of
    LIMITS after it was due. `failed` includes `unsent`.
    """

    def within(latencies: list[float]) -> dict[str, float]:
        return {str(limit): sum(latency <= limit / 1e3 for latency in latencies) / seconds for limit in LIMITS}

    good = sorted(latency for _, latency, status in answers if status == 200)
    refused = sorted(latency for _, latency, status in answers if status in (429, 503))
    start = min((due for due, _, _ in answers), default=0.0)
    slices: list[list[list[float]]] = [[[], []] for _ in range(int(seconds / SLICE) + 1)]
    for due, latency, status in answers:
        slices[min(len(slices) - 1, int((due - start) / SLICE))][status != 200].append(latency)
    return {
        "offered": len(answers) / seconds,
        "answered": len(good) / seconds,
        "within": within(good),
        "refused": len(refused) / seconds,
        "refused_within": within(refused),
        "failed": (len(answers) - len(good) - len(refused)) / seconds,
        "unsent": sum(status == UNSENT for _, _, status in answers) / seconds,
        "p50": percentile(good, 0.5),
        "p99": percentile(good, 0.99),
        "refused_p50": percentile(refused, 0.5),
        "refused_p99": percentile(refused, 0.99),
        "slices": [[len(ok), len(bad), percentile(sorted(ok), 0.5)] for ok, bad in slices],
    }


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    gc.disable()
    opened = Pool(order["port"], order["connections"])
    time.sleep(0.2)
    body = Path(order["request"]).read_bytes()
    outcome = send(opened, body, order["phases"], order["patience"], order.get("seed"))
    print(json.dumps([summary(answers, phase[1]) for answers, phase in zip(outcome, order["phases"], strict=True)]))
