"""The queue between clients and models: no timer, no polling, nothing dropped that was taken in.

A slot is a thread that runs one batch at a time; there is one a core. When a slot is free, it takes what waits for the
model that has had the least of the machine so far, up to the batch size that the warm-up found best. Where there is one core,
a short batch runs in the event loop itself: changing threads would cost more than it delays others. What could not be
done before its deadline is refused at the door; what was cancelled or is too late leaves before it costs anything. A batch
that fails is run again item by item, so that only the bad one fails.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from loopline.server.messages import Refusal

MOST_WAITING = 4096  # items of one model
MOST_BYTES = 256 * 1024 * 1024  # of all items that wait
INLINE_SECONDS = 0.002  # a batch that is thought to take no longer may run in the event loop
TURN_SECONDS = 0.002  # of reading requests, and then a batch: thousands of busy connections must not hold up the model
INLINE_BYTES = 64 * 1024  # of its payloads: decoding takes time too
LEARN = 0.1  # weight of the newest batch in what a row is thought to cost
Answer = Any


class Runner(Protocol):
    """A model as the queue sees it."""

    name: str
    best_rows: int  # of a batch: more gain no speed
    row_seconds: float  # of a row in such a batch

    def run(self, payloads: Sequence[Any]) -> list[Answer | Exception]:
        """Answers to payloads in their order, on a slot's thread. An exception in the list is one item's; a raised one the batch's."""


@dataclass(slots=True, eq=False)
class Job:
    """One item that waits: its payload, how many rows and bytes it has, and whom to tell in the event loop's thread."""

    model: Runner
    payload: Any
    rows: int
    size: int
    deadline: float  # time.monotonic()
    done: Callable[[Job], None]
    result: Answer | Exception | None = None
    cancelled: bool = False
    enqueued: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    batch_rows: int = 0

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.cancelled = True


class TooLate(Exception):
    """The deadline passed while the item waited."""


@dataclass(slots=True)
class _Line:
    """What waits for one model."""

    model: Runner
    jobs: deque[Job] = field(default_factory=deque)
    rows: int = 0
    used: float = 0.0  # seconds of a slot that this model has had


class Batcher:
    """Submit jobs from the event loop's thread; their `done` is called in it."""

    def __init__(
        self,
        models: Sequence[Runner],
        *,
        slots: int,
        observe: Callable[[Runner, list[Job]], None],
        inline_seconds: float = INLINE_SECONDS,
    ) -> None:
        """slots: threads. observe: called with every batch that has run, for the metrics. inline_seconds: see the module."""
        self.lines = {model.name: _Line(model) for model in models}
        self.slots, self.observe = slots, observe
        self.free = slots
        self.inline_seconds = inline_seconds if slots == 1 else -1.0
        self.due = False  # a dispatch is
        self.due_since = 0.0
        self.waiting_bytes = 0
        self.waiting_seconds = 0.0  # what the waiting rows are thought to cost
        self.running_seconds = 0.0
        self.loop = asyncio.get_running_loop()
        self.inbox: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self.threads = [threading.Thread(target=self._work, name=f"slot-{n}", daemon=True) for n in range(slots)]
        for thread in self.threads:
            thread.start()

    def expected_seconds(self, model: Runner, rows: int) -> float:
        """How long `rows` more rows of `model` would take from now until they are done."""
        ahead = (self.waiting_seconds + self.running_seconds) / self.slots
        return ahead + rows * model.row_seconds

    def admit(self, model: Runner, rows: int, size: int, deadline: float, now: float) -> None:
        """Raises Refusal if this item would come too late (503), or if too much waits already (429)."""
        line = self.lines[model.name]
        if len(line.jobs) >= MOST_WAITING or self.waiting_bytes + size > MOST_BYTES:
            raise Refusal(
                429, f"{len(line.jobs)} requests wait for {model.name}", headers=retry_after(self.waiting_seconds)
            )
        expected = self.expected_seconds(model, rows)
        if now + expected > deadline:
            raise Refusal(
                503,
                f"{model.name} is busy: an answer would take {expected * 1e3:.0f} ms, {max(0.0, deadline - now) * 1e3:.0f} are left",
                headers=retry_after(expected),
            )

    def submit(self, job: Job) -> None:
        """Take `job` in. Raises Refusal as `admit` does."""
        now = time.monotonic()
        self.admit(job.model, job.rows, job.size, job.deadline, now)
        line = self.lines[job.model.name]
        if not line.jobs:  # an idle model saves up no claim on the machine
            line.used = max(
                line.used, min((other.used for other in self.lines.values() if other.jobs), default=line.used)
            )
        job.enqueued = now
        line.jobs.append(job)
        line.rows += job.rows
        self.waiting_bytes += job.size
        self.waiting_seconds += job.rows * line.model.row_seconds
        self._dispatch_soon()

    @property
    def busy(self) -> bool:
        """Something waits or runs."""
        return self.free < self.slots or any(line.jobs for line in self.lines.values())

    def close(self) -> None:
        """End the threads; what still waits gets no answer."""
        for _ in self.threads:
            self.inbox.put(None)

    def _dispatch_soon(self) -> None:
        """After all requests that came in this turn of the event loop, so that they go together."""
        if self.free and not self.due:
            self.due, self.due_since = True, time.monotonic()
            self.loop.call_soon(self._dispatch)

    def turn(self) -> None:
        """To be called before each piece of reading: runs what has been due for long."""
        if self.due and time.monotonic() - self.due_since > TURN_SECONDS:
            self._dispatch()

    def _dispatch(self) -> None:
        self.due = False
        while self.free:
            lines = [line for line in self.lines.values() if line.jobs]
            if not lines:
                return
            line = min(lines, key=_used) if len(lines) > 1 else lines[0]
            batch = self._take(line)
            if not batch:
                continue
            seconds = batch[0].batch_rows * line.model.row_seconds
            self.free -= 1
            self.running_seconds += seconds
            if seconds <= self.inline_seconds and sum(job.size for job in batch) <= INLINE_BYTES:
                _execute(batch)
                self._finished(batch)
                return  # the next turn's dispatch is due already
            self.inbox.put(batch)

    def _take(self, line: _Line) -> list[Job]:
        """The next batch, first come first served. What is cancelled or too late is let go."""
        batch: list[Job] = []
        rows, now, most = 0, time.monotonic(), line.model.best_rows
        while line.jobs and (not batch or rows + line.jobs[0].rows <= most):
            job = line.jobs.popleft()
            line.rows -= job.rows
            self.waiting_bytes -= job.size
            if job.cancelled:
                continue
            if now > job.deadline:
                job.result = TooLate()
                self.loop.call_soon(_tell, job)
                continue
            batch.append(job)
            rows += job.rows
        for job in batch:
            job.batch_rows = rows
        self._price()
        return batch

    def _price(self) -> None:
        self.waiting_seconds = sum(line.rows * line.model.row_seconds for line in self.lines.values())

    def _work(self) -> None:
        """A slot's thread."""
        while (batch := self.inbox.get()) is not None:
            _execute(batch)
            try:
                self.loop.call_soon_threadsafe(self._finished, batch)
            except RuntimeError:  # the loop is closed: nobody waits
                return

    def _finished(self, batch: list[Job]) -> None:
        model, rows = batch[0].model, batch[0].batch_rows
        seconds = batch[0].finished - batch[0].started
        self.free += 1
        self.lines[model.name].used += seconds
        self.running_seconds = (
            max(0.0, self.running_seconds - rows * model.row_seconds) if self.free < self.slots else 0.0
        )
        if rows >= model.best_rows:
            model.row_seconds += LEARN * (seconds / rows - model.row_seconds)
        self._dispatch_soon()
        for job in batch:
            _tell(job)
        self.observe(model, batch)


def _tell(job: Job) -> None:
    """Unless its client left, also between the decision and this call."""
    if not job.cancelled:
        job.done(job)


def _used(line: _Line) -> float:
    return line.used


def _execute(batch: list[Job]) -> None:
    """Run the batch and note when."""
    started = time.monotonic()
    run(batch)
    finished = time.monotonic()
    for job in batch:
        job.started, job.finished = started, finished


def run(batch: list[Job]) -> None:
    """Set each job's result. If the batch fails as a whole, its items are tried one by one."""
    model = batch[0].model
    try:
        results = model.run([job.payload for job in batch])
    except Exception as error:
        results = [error] if len(batch) == 1 else [_alone(model, job) for job in batch]
    for job, result in zip(batch, results, strict=True):
        job.result = result


def _alone(model: Runner, job: Job) -> Answer | Exception:
    try:
        return model.run([job.payload])[0]
    except Exception as error:
        return error


def retry_after(seconds: float) -> dict[bytes, bytes]:
    """The header that tells when to come back: whole seconds, at least 1."""
    return {b"retry-after": b"%d" % max(1, round(seconds))}
