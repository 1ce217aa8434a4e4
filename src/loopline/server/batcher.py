"""The queue between clients and models, without timers or polling. Every accepted item gets an answer or an error while it is open.

A slot is a thread that runs one batch at a time; by default there is one slot a core. A free slot takes the jobs of the
waiting model that has used the least slot time, up to the batch size that the warm-up found best. With a single slot a
short batch runs in the event loop itself, because a change of threads would cost more than the delay to other requests.

`submit` refuses an item that could not be answered before its deadline. The prediction is learnt from the time between
batches while items wait, which includes reading, refusing and writing. Cancelled and late items leave the queue without
being run. A batch that fails is run again item by item, so that only the bad items fail.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loopline.server.jobs import Job, Runner, TooLate, execute
from loopline.server.messages import Refusal
from loopline.server.reading import ReadingBudget

MOST_WAITING = 4096  # most items that wait for one model
MOST_BYTES = 256 * 1024 * 1024  # most bytes of all waiting items
INLINE_SECONDS = 0.01  # a batch with a shorter expected time may run in the event loop
INLINE_BYTES = 256 * 1024  # most bytes of such a batch's payloads, because decoding takes time too
MARGIN = 1.05  # times the expected time that must be left when an item is accepted
LEARN = 0.1  # weight of the newest batch in what is learnt: a row's expected time, and the pace
# One batch may be this many times slower than expected in what is learnt: the machine may have been suspended meanwhile.
MOST_SLOWDOWN = 4.0
MOST_PACE = 10.0
TRY_SECONDS = 1.0  # an idle model that has not run for so long is tried, even if it is expected to be too slow


@dataclass(slots=True)
class _Line:
    """The jobs that wait for one model."""

    model: Runner
    jobs: deque[Job] = field(default_factory=deque)
    rows: int = 0
    used: float = 0.0  # seconds of slots that this model has used
    tried: float = 0.0  # when the last batch was taken, or has ended

    @property
    def seconds(self) -> float:
        """Expected time of the waiting rows."""
        return self.rows * self.model.row_seconds

    @property
    def full(self) -> bool:
        """Whether a full batch waits."""
        return self.rows >= self.model.best_rows


class Batcher:
    """The queue. Jobs are submitted in the event loop's thread, which also calls their `done`."""

    def __init__(
        self,
        models: Sequence[Runner],
        *,
        slots: int,
        observe: Callable[[Runner, list[Job]], None],
        inline_seconds: float = INLINE_SECONDS,
    ) -> None:
        """slots: number of threads. observe: called with each batch that has run. inline_seconds: see INLINE_SECONDS."""
        self.lines = {model.name: _Line(model) for model in models}
        self.slots, self.observe = slots, observe
        self.free = slots
        self.inline_seconds = inline_seconds if slots == 1 else -1.0
        self.due = False  # whether a dispatch is scheduled
        self.active = 0  # lines in which a job waits
        self.full = 0  # lines in which a full batch waits
        self.budget = ReadingBudget()
        self.returned = False  # whether a slot's thread has a result that the event loop has not seen
        self.pace = 1.0  # seconds that pass for an expected second of a busy slot
        self.busy_since: float | None = None  # the end of the last batch if items have waited ever since
        self.wake: Callable[[], None] = lambda: None  # set by the application: requests may be read again
        self.waiting_bytes = 0
        self.waiting_seconds = 0.0  # expected time of the waiting rows
        self.running_seconds = 0.0
        self.loop = asyncio.get_running_loop()
        self.inbox: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self.threads = [threading.Thread(target=self._work, name=f"slot-{n}", daemon=True) for n in range(slots)]
        for thread in self.threads:
            thread.start()

    def expected_seconds(self, model: Runner, rows: int) -> float:
        """Expected seconds from now until `rows` more rows of `model` are done.

        Models take turns by time, so those with longer lines delay this one by no more than its own line's time each.
        """
        line, ahead = self.lines[model.name], self.waiting_seconds
        if self.active > 1:
            ahead = min(ahead, line.seconds * self.active)
        ahead = (ahead + self.running_seconds) / self.slots
        batch = max(rows, min(line.rows + rows, model.best_rows)) * model.row_seconds
        return (ahead + batch) * self.pace if ahead else batch

    def admit(self, model: Runner, rows: int, size: int, deadline: float, now: float) -> None:
        """Raise Refusal if the queue is full (429) or if this item would be answered after its deadline (503)."""
        line = self.lines[model.name]
        if len(line.jobs) >= MOST_WAITING or self.waiting_bytes + size > MOST_BYTES:
            raise Refusal(
                429, f"{len(line.jobs)} requests wait for {model.name}", headers=retry_after(self.waiting_seconds)
            )
        expected = self.expected_seconds(model, rows)
        due_for_a_try = not line.jobs and now - line.tried > TRY_SECONDS and now < deadline
        if now + expected * MARGIN > deadline and not due_for_a_try:
            raise Refusal(
                503,
                f"{model.name} is busy: an answer needs {expected * 1e3:.0f} ms, {max(0, deadline - now) * 1e3:.0f} ms are left",
                headers=retry_after(expected),
            )

    def submit(self, job: Job) -> None:
        """Queue `job`. Raises Refusal as `admit` does."""
        now = time.monotonic()
        self.admit(job.model, job.rows, job.size, job.deadline, now)
        line = self.lines[job.model.name]
        if not line.jobs:  # a model that was idle gets no credit for that time
            self.active += 1
            line.used = max(
                line.used, min((other.used for other in self.lines.values() if other.jobs), default=line.used)
            )
        job.enqueued = now
        line.jobs.append(job)
        full = line.full
        line.rows += job.rows
        self.full += line.full - full
        self.waiting_bytes += job.size
        self.waiting_seconds += job.rows * line.model.row_seconds
        self._dispatch_soon()

    @property
    def busy(self) -> bool:
        """Whether a job waits or runs."""
        return self.free < self.slots or any(line.jobs for line in self.lines.values())

    def close(self) -> None:
        """End the threads. Jobs that still wait get no answer."""
        for _ in self.threads:
            self.inbox.put(None)

    def _dispatch_soon(self) -> None:
        """Schedule a dispatch after all requests of this turn of the event loop, so that they share a batch."""
        if self.free and not self.due:
            self.due = True
            self.loop.call_soon(self._dispatch)

    def hungry(self, spent: float) -> bool:
        """See `ReadingBudget`. A slot that has just become free is given a batch first."""
        return not (self.returned and self.full) and self.budget.hungry(spent, full=self.full > 0)

    def newest(self, waited: float) -> bool:
        """See `ReadingBudget`."""
        return self.budget.newest(waited, full=self.full > 0)

    def turn(self, spent: float) -> None:
        """Run what waits, after a turn of reading that took `spent` seconds."""
        self.budget.end_turn(spent)
        if self.due:
            self._dispatch()

    def _dispatch(self) -> None:
        if not self.due:
            return  # `turn` came first
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
                execute(batch)
                self._finished(batch)
                return  # `_finished` has scheduled the next dispatch
            self.inbox.put(batch)

    def _take(self, line: _Line) -> list[Job]:
        """Remove the next batch from the line, oldest jobs first. Leave out cancelled jobs, and report late ones."""
        batch: list[Job] = []
        rows, now, most, full = 0, time.monotonic(), line.model.best_rows, line.full
        done = now
        if now - line.tried <= TRY_SECONDS:
            done += min(line.rows, most) * line.model.row_seconds * self.pace
        line.tried = now
        while line.jobs and (not batch or rows + line.jobs[0].rows <= most):
            job = line.jobs.popleft()
            line.rows -= job.rows
            self.waiting_bytes -= job.size
            if job.cancelled:
                continue
            if done > job.deadline:
                job.result = TooLate()
                self.loop.call_soon(_tell, job)
                continue
            batch.append(job)
            rows += job.rows
        for job in batch:
            job.batch_rows = rows
        self.active -= not line.jobs
        self.full += line.full - full
        self.waiting_seconds = sum(line.seconds for line in self.lines.values())
        return batch

    def _work(self) -> None:
        """Run batches: the body of a slot's thread."""
        while (batch := self.inbox.get()) is not None:
            execute(batch)
            self.returned = True
            try:
                self.loop.call_soon_threadsafe(self._finished, batch)
            except RuntimeError:  # the event loop is closed, so no client waits
                return

    def _finished(self, batch: list[Job]) -> None:
        now, self.returned = time.monotonic(), False
        model, rows = batch[0].model, batch[0].batch_rows
        seconds, expected = batch[0].finished - batch[0].started, rows * model.row_seconds
        self.free += 1
        line = self.lines[model.name]
        line.used, line.tried = line.used + seconds, now
        self.running_seconds = max(0.0, self.running_seconds - expected) if self.free < self.slots else 0.0
        if self.busy_since is not None and expected:
            measured = min((now - self.busy_since) * self.slots / expected, MOST_PACE)
            weight = LEARN if self.pace > 1 else 1.0  # the first measurement counts in full
            self.pace = max(1.0, self.pace + weight * (measured - self.pace))
        self.busy_since = now if self.waiting_seconds else None
        if rows >= model.best_rows:
            newest = min(seconds / rows, MOST_SLOWDOWN * model.row_seconds) if model.row_seconds else seconds / rows
            model.row_seconds += LEARN * (newest - model.row_seconds)
        self._dispatch_soon()
        for job in batch:
            _tell(job)
        self.observe(model, batch)
        self.budget.earn(seconds + time.monotonic() - now)
        self.wake()


def _tell(job: Job) -> None:
    """Call the job's `done`, unless it was cancelled, which may happen between scheduling and this call."""
    if not job.cancelled:
        job.done(job)


def _used(line: _Line) -> float:
    return line.used


def retry_after(seconds: float) -> dict[bytes, bytes]:
    """The Retry-After header: whole seconds, at least 1."""
    return {b"retry-after": b"%d" % max(1, round(seconds))}
