"""An open loop: `python sender.py JSON` sends requests on a schedule and prints what became of them, phase by phase.

Latency counts from the time that a request was due, not from when it could be sent: a slow server cannot slow its own test
down. A connection has one request at a time. What finds no free connection waits, and is given up after `patience` seconds.
It spins: timers of milliseconds would be coarser than what is measured, and the core is its own.
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

LINGER = 1.0  # seconds after the end for the last answers
SLICE = 0.1  # seconds of the time line


class Client:
    """A keep-alive connection. due: of the request on its way."""

    __slots__ = ("buffer", "due", "sock")

    def __init__(self, port: int) -> None:
        """port: of the loopback."""
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
        self.sock.setblocking(False)
        self.buffer, self.due = b"", 0.0


def complete(buffer: bytes) -> int:
    """The status of the answer in `buffer`, 0 while it is not whole. Answers have a Content-Length."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return 0
    head = buffer[:end].lower()
    start = head.find(b"content-length:") + 15
    stop = head.find(b"\r\n", start)
    length = int(head[start : stop if stop > 0 else None])
    return int(buffer[9:12]) if len(buffer) >= end + 4 + length else 0


Answer = tuple[float, float, int]  # due and latency in seconds, status; status 0: given up or cut off


class Pool:
    """The connections. answers: what became of the requests so far."""

    def __init__(self, port: int, connections: int) -> None:
        """Opens them all."""
        self.port, self.poll = port, select.epoll()
        self.clients: dict[int, Client] = {}
        self.free: deque[Client] = deque()
        self.answers: list[Answer] = []
        for _ in range(connections):
            self.connect()

    def connect(self) -> None:
        """One more."""
        client = Client(self.port)
        self.clients[client.sock.fileno()] = client
        self.poll.register(client.sock, select.EPOLLIN)
        self.free.append(client)

    def drop(self, client: Client) -> None:
        """It is of no more use; what was on its way is lost."""
        if client.due:
            self.answers.append((client.due, LINGER, 0))
        else:
            self.free.remove(client)
        self.poll.unregister(client.sock)
        del self.clients[client.sock.fileno()]
        client.sock.close()
        self.connect()

    def ask(self, due: float, request: bytes) -> None:
        """Send on a free connection."""
        client = self.free.popleft()
        client.due = due
        try:
            if client.sock.send(request) < len(request):
                self.drop(client)
        except OSError:
            self.drop(client)

    def collect(self) -> None:
        """Take the answers that are there."""
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
    """What became of every request, by the phase that it was due in."""
    answers, waiting = pool.answers, deque[float]()
    start = time.perf_counter()
    schedule = times(start, phases, seed)
    end = start + sum(seconds for _, seconds in phases)
    upcoming = next(schedule, None)
    while (now := time.perf_counter()) < end or (
        (waiting or len(pool.free) < len(pool.clients)) and now < end + LINGER
    ):
        while upcoming is not None and upcoming <= now:
            waiting.append(upcoming)
            upcoming = next(schedule, None)
        while waiting and now - waiting[0] > patience:
            answers.append((waiting.popleft(), LINGER, 0))
        while waiting and pool.free:
            pool.ask(waiting.popleft(), request)
        pool.collect()
    answers += [(due, LINGER, 0) for due in (*waiting, *(client.due for client in pool.clients.values())) if due]
    bounds = [start + sum(seconds for _, seconds in phases[: place + 1]) for place in range(len(phases))]
    found: list[list[Answer]] = [[] for _ in phases]
    for answer in answers:
        found[min(bisect_right(bounds, answer[0]), len(phases) - 1)].append(answer)
    return found


def times(start: float, phases: list[tuple[float, float]], seed: int | None = None) -> Iterator[float]:
    """When each request is due: evenly, or by chance (Poisson) where there is a seed."""
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
    """Milliseconds; of nothing, 0."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3 if ordered else 0.0


def summary(answers: list[Answer], seconds: float) -> dict[str, Any]:
    """Counts, percentiles, and the time line as [answered, others, median ms] a slice, by when a request was due."""
    good = sorted(latency for _, latency, status in answers if status == 200)
    refused = sorted(latency for _, latency, status in answers if status in (429, 503))
    start = min((due for due, _, _ in answers), default=0.0)
    slices: list[list[list[float]]] = [[[], []] for _ in range(int(seconds / SLICE) + 1)]
    for due, latency, status in answers:
        slices[min(len(slices) - 1, int((due - start) / SLICE))][status != 200].append(latency)
    return {
        "offered": len(answers) / seconds,
        "answered": len(good) / seconds,
        "within": {
            str(limit): sum(latency <= limit / 1e3 for latency in good) / seconds for limit in (10, 100, 250, 1000)
        },
        "refused": len(refused) / seconds,
        "failed": (len(answers) - len(good) - len(refused)) / seconds,
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
