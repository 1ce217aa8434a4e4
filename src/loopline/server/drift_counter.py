"""Count the drift signals of served samples outside the request's path: a batch only pays for a look at the clock.

A slot's thread hands over the first rows of each half second, up to a rate. A separate thread computes their signals twice
a second, counts them in the bundle's bins, and sleeps without traffic. All results are counters, so replicas add up exactly.

The thread works on a few rows at a time, so that it holds the interpreter's lock only briefly, and it takes fewer rows if they
cost more than `SHARE` of a core. A lower priority would not do: the event loop would wait for a thread that holds the lock and
does not run.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from loopline.drift import reference as drift
from loopline.lib.arrays import Arrays
from loopline.server.journal_writer import item_id
from loopline.server.limits import ROWS_A_SECOND
from loopline.server.logs import log
from loopline.server.metrics import Metrics, Value
from loopline.server.rows import DecodedRows
from loopline.tasks import signals
from loopline.tasks.spec import ModelSpec

if TYPE_CHECKING:
    from loopline.server.journal_writer import Journal
    from loopline.server.model import Model

PERIOD = 0.5  # seconds between two rounds of counting
CLOSE_SECONDS = 10.0  # longest wait for the last round
ROUNDS_BEHIND = 4  # rounds' worth of rows that may wait to be counted
SHARE = 0.004  # of a core, for a model's signals: more would be seen in the slowest of a hundred requests
LEARN = 0.2  # weight of the newest rows in the expected time of a row
SLICE_PIXELS = 1 << 16  # of the images whose signals are computed at a time


class Watch:
    """The sampler of one model's batches. Slots' threads call it without a lock: two of them may take a few rows too many."""

    def __init__(
        self, model: Model, rows_a_second: int, inbox: queue.SimpleQueue[tuple[Watch, DecodedRows] | None]
    ) -> None:
        """inbox: the counting thread's queue of sampled rows."""
        self.model, self.inbox = model, inbox
        self.most = self.allowed = max(1, int(rows_a_second * PERIOD))
        self.row_seconds = 0.0  # processor time of a row's signals
        self.uncounted = 0  # rows that were handed over and not yet counted
        self.left, self.until = 0, 0.0

    def open(self) -> bool:
        """Whether a row may be taken now."""
        if self.left > 0:
            return True
        now = time.monotonic()
        if now < self.until or self.uncounted >= ROUNDS_BEHIND * self.allowed:
            return False
        self.left, self.until = self.allowed, now + PERIOD
        return True

    def learn(self, rows: int, seconds: float) -> None:
        """Take fewer rows if they are expensive. seconds: processor time of these rows."""
        weight = LEARN if self.row_seconds else 1.0
        self.row_seconds += weight * (seconds / rows - self.row_seconds)
        self.allowed = max(1, min(self.most, int(PERIOD * SHARE / self.row_seconds)))

    def take(self, taken: DecodedRows) -> None:
        """Hand over the first of these rows, as many as this half second still allows."""
        rows = min(self.left, len(next(iter(taken.inputs.values()))))
        if rows > 0:
            self.left -= rows
            self.uncounted += rows
            self.inbox.put((self, taken.first(rows)))


class Watcher:
    """The counting thread, for all models of a server."""

    def __init__(
        self,
        models: Sequence[Model],
        metrics: Metrics,
        *,
        rows_a_second: int = ROWS_A_SECOND,
        journal: Journal | None = None,
    ) -> None:
        """Start watching each model, unless rows_a_second is 0. Its reference is exported in any case."""
        self.journal = journal
        self.inbox: queue.SimpleQueue[tuple[Watch, DecodedRows] | None] = queue.SimpleQueue()
        self.counted: dict[Watch, Counts] = {}
        for model in models:
            counts = Counts(model, metrics)
            if rows_a_second:
                model.watch = Watch(model, rows_a_second, self.inbox)
                self.counted[model.watch] = counts
        self.thread = threading.Thread(target=self._work, name="signals", daemon=True)
        if self.counted:
            self.thread.start()

    def close(self) -> None:
        """Count the waiting rows, hand them to the journal, and end the thread."""
        self.inbox.put(None)
        if self.counted:
            self.thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        while True:
            received = [self.inbox.get()]
            time.sleep(PERIOD)
            while not self.inbox.empty():
                received.append(self.inbox.get())
            groups: dict[tuple[Watch, bool], list[DecodedRows]] = {}
            for watch, taken in filter(None, received):
                groups.setdefault((watch, taken.originals is None), []).append(taken)
            for (watch, _), parts in groups.items():
                for rows in _slices(watch.model.spec, parts):
                    self._count(watch, rows)
            if None in received:
                return

    def _count(self, watch: Watch, parts: Sequence[DecodedRows]) -> None:
        rows, start = sum(part.rows for part in parts), time.thread_time()
        try:
            signals = _signals(watch.model.spec, parts)
            self.counted[watch].add(signals)
            if self.journal:
                _note(self.journal, watch.model, signals, parts)
            watch.learn(rows, time.thread_time() - start)
        except Exception as error:  # an error must end neither the counting nor the server
            log("error", "drift signals could not be counted", error=repr(error))
        watch.uncounted -= rows


def _slices(spec: ModelSpec, parts: Sequence[DecodedRows]) -> Iterator[list[DecodedRows]]:
    """Group images so that each group has about SLICE_PIXELS; texts are few bytes and stay together."""
    most = (
        max(1, SLICE_PIXELS // (spec.image.height * spec.image.width))
        if spec.image
        else sum(part.rows for part in parts)
    )
    group: list[DecodedRows] = []
    for part in parts:
        if group and sum(member.rows for member in group) + part.rows > most:
            yield group
            group = []
        group.append(part)
    yield group


def _signals(spec: ModelSpec, rows: Sequence[DecodedRows]) -> signals.Signals:
    """The signals of rows that either all have originals or all have none."""
    texts = [item for part in rows for item in part.originals or ()]
    sizes = [part.sizes for part in rows if part.sizes is not None]
    inputs, outputs = _joined([part.inputs for part in rows], spec), _joined([part.outputs for part in rows], spec)
    return signals.signals(inputs, outputs, spec, texts or None, np.concatenate(sizes) if sizes else None)


def _note(journal: Journal, model: Model, values: signals.Signals, rows: Sequence[DecodedRows]) -> None:
    """Hand samples with their answers to the journal. Tensors of the protocol have no original to keep."""
    if rows[0].originals is not None:
        identities = [item_id(part.identity, place, part.items) for part in rows for place in range(len(part.answers))]
        originals = [item for part in rows for item in part.originals or ()]
        journal.keep(model, values, identities, originals, [answer for part in rows for answer in part.answers])


def _joined(parts: Sequence[Arrays], spec: ModelSpec) -> Arrays:
    """Join arrays along the first axis. Token ids are padded to the longest row."""
    joined = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if name == "ids" and spec.text is not None:
            longest = max(array.shape[1] for array in arrays)
            pad = spec.text.pad_id
            arrays = [np.pad(a, ((0, 0), (0, longest - a.shape[1])), constant_values=pad) for a in arrays]
        joined[name] = np.concatenate(arrays)
    return joined


class Counts:
    """The metrics of one model: a counter for each bin, and gauges of the reference."""

    def __init__(self, model: Model, metrics: Metrics) -> None:
        reference, key = model.reference, (model.name, model.version)
        self.reference = reference
        self.constant = metrics.value("constant_rows", *key)
        self.bins: dict[str, list[Value]] = {}
        for name, signal in reference.signals.items():
            total = sum(signal.counts)
            self.bins[name] = [metrics.value("signal_rows", *key, name, bin_) for bin_ in signal.bins]
            for bin_, count in zip(signal.bins, signal.counts, strict=True):
                metrics.value("reference_share", *key, name, bin_).value = count / total
            if name != signals.CLASS:
                for bin_, middle in zip(signal.bins, signal.middles, strict=False):  # the NaN bin has no middle
                    metrics.value("signal_bin_value", *key, name, bin_).value = middle
            metrics.value("reference_samples", *key, name).value = total
            metrics.value("signal_mean", *key, name).value = signal.mean
            metrics.value("signal_sd", *key, name).value = signal.sd
            metrics.value("signal_noise", *key, name).value = signal.noise
        for term, factor in zip(("constant", "small", "large"), reference.threshold, strict=True):
            metrics.value("drift_threshold", *key, term).value = factor
        metrics.value("drift_least_samples", *key).value = reference.least
        quality = reference.quality
        metrics.value("quality_reference", *key, quality.metric).value = quality.value
        metrics.value("quality_max_loss", *key).value = quality.max_loss
        for estimate, weights in quality.weights.items():
            for bin_, weight in zip(reference.signals[quality.signal].bins, weights, strict=True):
                metrics.value("quality_weight", *key, quality.signal, bin_, estimate).value = weight

    def add(self, sampled: signals.Signals) -> None:
        """Count the signals' values, one of each signal a sample."""
        for name, values in sampled.items():
            if name in self.bins:
                counts = drift.bin_counts(values, np.array(self.reference.signals[name].edges))
                for number in np.flatnonzero(counts):
                    self.bins[name][number].value += int(counts[number])
        if "contrast" in sampled:
            self.constant.value += int((sampled["contrast"] < signals.FLAT).sum())
