"""Count the drift signals of served samples outside the request's path: a batch only pays for a comparison.

A slot's thread hands over rows, up to a number. A separate thread computes their signals in rounds, counts them in the bundle's
bins, and sleeps without traffic. All results are counters, so replicas add up exactly.

A round costs much for its first row and little for each further one. A round that was expensive is therefore followed by a longer
pause, and not by a smaller round: the signals cost `SHARE` of a core at most, and under light traffic no row is left out. The thread
works on a few rows at a time, so that it holds the interpreter's lock only briefly. A lower priority would not do: the event loop
would wait for a thread that holds the lock and does not run.
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

PAUSE = 0.5  # seconds: shortest pause between two rounds of counting
MOST_PAUSE = 5.0  # seconds, even if one row costs more than this share
CLOSE_SECONDS = 10.0  # longest wait for the last round
SHARE = 0.004  # of a core, for a model's signals: more would be seen in the slowest of a hundred requests
ROUND_SECONDS = 0.01  # processor time of a model's signals in one round; with SHARE, every two and a half seconds
SLICE_PIXELS = 1 << 16  # of the images whose signals are computed at a time


class Watch:
    """The sampler of one model's batches. Slots' threads call it without a lock: two of them may take a few rows too many."""

    def __init__(
        self, model: Model, rows_a_second: int, inbox: queue.SimpleQueue[tuple[Watch, DecodedRows] | None]
    ) -> None:
        """inbox: the counting thread's queue of sampled rows."""
        self.model, self.rows_a_second, self.inbox = model, rows_a_second, inbox
        self.affordable = float(rows_a_second)  # rows of a round
        self.left = 0  # rows that may still be taken before the next round
        self.begin(PAUSE)

    def open(self) -> bool:
        """Whether a row may be taken now."""
        return self.left > 0

    def begin(self, pause: float) -> None:
        """Begin a round, which ends after `pause` seconds."""
        self.left = max(1, int(min(self.affordable, self.rows_a_second * pause)))

    def learn(self, rows: int, seconds: float) -> None:
        """Take more or fewer rows in a round. rows, seconds: of the last round, seconds of processor time."""
        if seconds > ROUND_SECONDS:
            self.affordable = max(1.0, rows * ROUND_SECONDS / seconds)
        elif rows >= self.affordable:
            self.affordable *= 2

    def take(self, taken: DecodedRows) -> None:
        """Hand over the first of these rows, as many as this round still allows."""
        rows = min(self.left, len(next(iter(taken.inputs.values()))))
        if rows > 0:
            self.left -= rows
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
        self.closing = threading.Event()
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
        self.closing.set()
        self.inbox.put(None)
        if self.counted:
            self.thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        earliest = 0.0  # the next round's, on the monotonic clock
        while True:
            received = [self.inbox.get()]
            self.closing.wait(max(PAUSE, earliest - time.monotonic()))
            while not self.inbox.empty():
                received.append(self.inbox.get())
            groups: dict[Watch, dict[bool, list[DecodedRows]]] = {}
            for watch, taken in filter(None, received):
                groups.setdefault(watch, {}).setdefault(taken.originals is None, []).append(taken)
            pause = PAUSE
            for watch, kinds in groups.items():
                slices = [rows for parts in kinds.values() for rows in _slices(watch.model.spec, parts)]
                seconds = sum(self._count(watch, rows) for rows in slices)
                watch.learn(sum(part.rows for rows in slices for part in rows), seconds)
                pause = min(max(pause, seconds / SHARE), MOST_PAUSE)
            if None in received:
                return
            earliest = time.monotonic() + pause
            for watch in self.counted:
                watch.begin(pause)

    def _count(self, watch: Watch, parts: Sequence[DecodedRows]) -> float:
        """Count these rows. Return the processor time that it took, in seconds."""
        start = time.thread_time()
        try:
            signals = _signals(watch.model.spec, parts)
            self.counted[watch].add(signals)
            if self.journal:
                _note(self.journal, watch.model, signals, parts)
        except Exception as error:  # an error must end neither the counting nor the server
            log("error", "drift signals could not be counted", error=repr(error))
        return time.thread_time() - start


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
