"""Write the journal: a sample of the served inputs, the doubtful ones, and the labels that come back, as lines in a folder.

A separate thread writes, so that a request neither waits for the disk nor fails with it. The writer locks its segment in `open/`
and moves it to `closed/` when it is old or large enough; `loopline journal` turns it into Parquet. A line is flushed before its
label is acknowledged, so a killed server loses no acknowledged label; its segment may end in a cut line.
"""

from __future__ import annotations

import base64
import fcntl
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from loopline.drift.reference import Reference, bin_of
from loopline.errors import LooplineError
from loopline.lib.options import option
from loopline.server.logs import log
from loopline.server.metrics import Metrics

if TYPE_CHECKING:
    from loopline.server.model import Model

OPEN, CLOSED = "open", "closed"
REASONS = ("sampled", "uncertain", "drifted", "error")
SURE = 0.1  # a sample is uncertain if it is among the least sure of the reference, this share of it
RARE = 0.005  # a sample is drifted if its bin holds less than this share of the reference
WAITING, WAITING_BYTES = 2000, 64 << 20  # most lines that wait for the disk, most bytes of their inputs
ERRORS_A_SECOND, ERROR_BYTES = 5, 1 << 20  # most refused items a second; larger items are kept without their input
DOUBTFUL_A_SECOND = 10  # most doubtful samples a second of a model, so that drift of all traffic leaves room for others
# E-mail addresses and long numbers. Bounded, and an address starts at a word: else a long word takes quadratic time.
MASKS = (re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w.-]{1,255}"), re.compile(r"\d(?:[ ./-]?\d){5,40}"))
Redact = Literal["nothing", "text", "inputs"]
Signals = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class JournalOptions:
    """What the journal keeps. seconds, size: most of a segment."""

    folder: Path
    sample: float = option(0.1, "share of ordinary samples that the journal keeps, 0 to 1", name="journal-sample")
    redact: Redact = option(
        "nothing",
        "parts to redact; text: mail addresses and long numbers in texts; inputs: all inputs",
        name="journal-redact",
    )
    seconds: float = option(5.0, "seconds until `loopline journal` may fetch a sample", name="journal-seconds")
    size: int = 8 << 20
    most: int = 256 << 20  # most bytes of closed segments that were not fetched; then the oldest are removed


@dataclass(frozen=True, slots=True)
class JournalLine:
    """A line to write. original: the input, to be redacted and added. done: called with whether the line is on disk."""

    content: dict[str, Any]
    original: bytes | str | None = None
    done: Callable[[bool], None] | None = None


class Journal:
    """The journal of all models of a server."""

    def __init__(self, options: JournalOptions, models: Sequence[Model], metrics: Metrics) -> None:
        """Start the writing thread. Raises LooplineError if the folder cannot be written."""
        self.options = options
        self.lines: queue.SimpleQueue[JournalLine | None] = queue.SimpleQueue()
        self.limits = {model.name: Doubts(model.reference) for model in models}
        keys = {model.name: (model.name, model.version) for model in models}
        self.written = {
            (name, r): metrics.value("journal_rows", *key, r) for name, key in keys.items() for r in REASONS
        }
        self.lost = metrics.value("journal_lost")
        self.dropped = metrics.value("journal_dropped_segments")
        self.errors = Rate(ERRORS_A_SECOND)
        self.doubtful = {model.name: Rate(DOUBTFUL_A_SECOND) for model in models}
        self.waiting, self.counting = 0, threading.Lock()  # bytes of waiting inputs, and the lock for them
        try:
            for path in (options.folder, options.folder / OPEN, options.folder / CLOSED):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)  # private: it holds clients' data
            Segment(options.folder).close()
        except OSError as error:
            raise LooplineError(f"the journal cannot be written: {error}") from error
        self.segment: Segment | None = None
        self.thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Write the waiting lines and close the segment."""
        self.lines.put(None)
        self.thread.join(10)

    # Called by other threads

    def keep(
        self,
        model: Model,
        signals: Signals,
        identities: Sequence[str],
        originals: Sequence[bytes | str],
        answers: Sequence[Any],
    ) -> None:
        """Choose among n answered samples and write those. signals: name -> (n,)."""
        reasons = self.limits[model.name].reasons(signals, len(identities))
        for row, reason in enumerate(reasons):
            fair = random.random() < self.options.sample  # noqa: S311 - for sampling only
            if fair or (reason and self.doubtful[model.name].allows()):
                row_signals = {name: float(values[row]) for name, values in signals.items()}
                fields = {"signals": row_signals, "prediction": answers[row], "fair": fair}
                self._entry(model, identities[row], originals[row], 200, reason or "sampled", fields)

    def refused(self, model: Model, identity: str, originals: Sequence[bytes | str], status: int, message: str) -> None:
        """Write inputs that could not be read or that the model failed on, ERRORS_A_SECOND at most."""
        fields: dict[str, Any] = {"signals": {}, "prediction": {"error": message}, "fair": False}
        for row, item in enumerate(originals):
            if not self.errors.allows():
                return
            kept = item if len(item) <= ERROR_BYTES else item[:0]
            self._entry(model, item_id(identity, row, len(originals)), kept, status, "error", fields)

    def label(self, model: Model, identity: str, label: Any, source: str, done: Callable[[bool], None]) -> None:
        """Write a label that came back. done: see `JournalLine`; called in another thread, or at once if the queue is full."""
        content = {"kind": "label", "id": identity, "time": time.time(), "model": model.name}
        self._put(JournalLine(content | {"label": label, "source": source}, done=done))

    def _entry(
        self, model: Model, identity: str, original: bytes | str, status: int, reason: str, fields: dict[str, Any]
    ) -> None:
        content = {"kind": "entry", "id": identity, "time": time.time(), "model": model.name, "version": model.version}
        self._put(JournalLine(content | {"status": status, "reason": reason, **fields}, original=original))

    def _put(self, line: JournalLine) -> None:
        size = len(line.original or "")
        with self.counting:
            full = self.lines.qsize() >= WAITING or self.waiting + size > WAITING_BYTES
            self.waiting += 0 if full else size
            self.lost.value += full
        if not full:
            self.lines.put(line)
        elif line.done:
            line.done(False)

    # The writing thread

    def _work(self) -> None:
        while True:
            received = self._next()
            last = None in received
            self._write([line for line in received if line is not None])
            if self.segment and (last or self.segment.old(self.options.seconds, self.options.size)):
                try:
                    self.segment.close()
                    self._bound()
                except OSError as error:
                    log("error", "the journal's segment could not be closed", error=str(error))
                self.segment = None
            if last:
                return

    def _next(self) -> list[JournalLine | None]:
        """The next waiting lines; [] after a segment's time without one. None ends the thread."""
        try:
            received = [self.lines.get(timeout=self.options.seconds)]
        except queue.Empty:
            return []
        while not self.lines.empty() and len(received) < WAITING:
            received.append(self.lines.get())
        return received

    def _write(self, lines: Sequence[JournalLine]) -> None:
        if not lines:
            return
        try:
            self.segment = self.segment or Segment(self.options.folder)
            self.segment.write(b"".join(self._encoded(line) for line in lines))
            written = True
        except (OSError, TypeError) as error:  # usually a full disk
            log("error", "the journal could not be written", error=str(error), lines=len(lines))
            written = False
        with self.counting:
            self.waiting -= sum(len(line.original or "") for line in lines)
            self.lost.value += 0 if written else len(lines)
        for line in lines:
            if written and line.content["kind"] == "entry":
                self.written[line.content["model"], line.content["reason"]].value += 1
            if line.done:
                line.done(written)

    def _encoded(self, line: JournalLine) -> bytes:
        content = line.content
        if line.original is not None:
            kind = "image" if isinstance(line.original, bytes) else "text"
            content = content | {kind: redacted(line.original, self.options.redact)}
        return orjson.dumps(content, default=_plain) + b"\n"

    def _bound(self) -> None:
        """Remove the oldest closed segments over the limit, so that the disk does not fill if they are not fetched."""
        segments = sorted((self.options.folder / CLOSED).glob("*.jsonl"))
        sizes = {path: path.stat().st_size for path in segments if path.exists()}
        total = sum(sizes.values())
        for path in segments:
            if total <= self.options.most:
                return
            path.unlink(missing_ok=True)
            self.dropped.value += 1
            total -= sizes.get(path, 0)


class Segment:
    """An open file of lines. The file is locked as long as its writer runs."""

    def __init__(self, folder: Path) -> None:
        """Create the file in `folder`/open and lock it. Raises OSError."""
        self.name = f"{time.time_ns():020}-{os.getpid()}.jsonl"
        self.path, self.target = folder / OPEN / self.name, folder / CLOSED / self.name
        # The collector looks for *.jsonl, so the file is locked before it gets that name.
        partial = self.path.with_suffix(".partial")
        self.file = partial.open("xb", buffering=0)
        fcntl.flock(self.file, fcntl.LOCK_EX)
        partial.rename(self.path)
        self.since, self.bytes = time.monotonic(), 0

    def write(self, lines: bytes) -> None:
        """Append whole lines. On an error, remove all of them again and raise OSError."""
        try:
            view = memoryview(lines)
            while view:
                view = view[self.file.write(view) :]
        except OSError:
            self.file.truncate(self.bytes)
            self.file.seek(self.bytes)
            raise
        self.bytes += len(lines)

    def old(self, seconds: float, size: int) -> bool:
        """Whether it is time for the next segment. seconds, size: its age and bytes from which it is."""
        return self.bytes >= size or time.monotonic() - self.since >= seconds

    def close(self) -> None:
        """Move the file to `closed`, or remove it if it is empty."""
        if self.bytes:
            self.path.rename(self.target)
        else:
            self.path.unlink(missing_ok=True)
        self.file.close()


class Doubts:
    """The limits from which a sample is uncertain or drifted, by a model's reference."""

    def __init__(self, reference: Reference) -> None:
        """Compute the limits once."""
        sure = reference.signals[reference.quality.signal]
        below = np.cumsum(sure.counts[:-1]) / max(1, sum(sure.counts[:-1]))
        place = int(np.searchsorted(below, SURE))
        self.signal, self.least_sure = reference.quality.signal, sure.edges[min(place, len(sure.edges) - 1)]
        self.edges = {name: np.array(signal.edges) for name, signal in reference.signals.items()}
        self.rare = {
            name: np.array(signal.counts) / sum(signal.counts) < RARE for name, signal in reference.signals.items()
        }

    def reasons(self, signals: Signals, rows: int) -> list[str]:
        """For each row "uncertain", "drifted" or ""."""
        strange = np.zeros(rows, bool)
        for name, values in signals.items():
            if name in self.edges:
                strange |= self.rare[name][bin_of(values, self.edges[name])]
        confidence = signals.get(self.signal)
        unsure = np.zeros(rows, bool) if confidence is None else ~(confidence >= self.least_sure)
        return ["uncertain" if u else "drifted" if s else "" for u, s in zip(unsure, strange, strict=True)]


class Rate:
    """A limit on events a second. Not safe for several threads."""

    def __init__(self, most: int) -> None:
        """most: events in a second."""
        self.most, self.left, self.until = most, 0, 0.0

    def allows(self) -> bool:
        """Count an event; return whether it is within the limit."""
        now = time.monotonic()
        if now >= self.until:
            self.left, self.until = self.most, now + 1
        self.left -= 1
        return self.left >= 0


def item_id(identity: str, row: int, rows: int) -> str:
    """An item's id: the request's id, and if the request has several items, also the item's place from 0."""
    return identity if rows == 1 else f"{identity}#{row}"


def redacted(original: bytes | str, redact: Redact) -> str | None:
    """The part of an input that the journal keeps: a text, an image as base64, or None."""
    if redact == "inputs":
        return None
    if isinstance(original, bytes):
        return base64.b64encode(original).decode("ascii")
    if redact == "text":
        for mask in MASKS:
            original = mask.sub("▇", original)
    return original


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written to a journal's line")
