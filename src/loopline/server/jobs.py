"""One item of the queue, and how a batch of items is run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Answer = Any


class Runner(Protocol):
    """A model as the queue sees it."""

    name: str
    best_rows: int  # best batch size: larger batches are no faster per row
    row_seconds: float  # expected seconds a row in such a batch

    def run(self, payloads: Sequence[Any]) -> list[Answer | Exception]:
        """Answer the payloads in order, on a slot's thread. Return an item's own error in the list; raise an error of the batch."""


@dataclass(slots=True, eq=False)
class Job:
    """One item of the queue: its payload, its rows and bytes, and the callback that the event loop's thread calls with it."""

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
        """Mark the job as no longer needed."""
        self.cancelled = True


class TooLate(Exception):
    """The deadline passed while the item waited."""


def execute(batch: list[Job]) -> None:
    """Run the batch and record its start and end."""
    started = time.monotonic()
    run(batch)
    finished = time.monotonic()
    for job in batch:
        job.started, job.finished = started, finished


def run(batch: list[Job]) -> None:
    """Set each job's result. If the whole batch fails, run its items one by one."""
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
