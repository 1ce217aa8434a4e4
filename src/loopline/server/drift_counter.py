"""Counts the drift signals of what is served, off the hot path: a request costs a look at the clock.

A slot's thread hands over some rows of a batch, the first of each half second, up to a rate. One thread computes their signals twice
a second, counts them in the bundle's bins, and sleeps while there is no traffic. Counters only: sums over replicas are exact.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from loopline.drift import reference as drift
from loopline.lib.arrays import Arrays
from loopline.server.journal_writer import item_id
from loopline.server.logs import log
from loopline.server.metrics import Metrics, Value
from loopline.server.rows import DecodedRows
from loopline.tasks import signals
from loopline.tasks.spec import ModelSpec

if TYPE_CHECKING:
    from loopline.server.journal_writer import Journal
    from loopline.server.model import Model

PERIOD = 0.5  # seconds
CLOSE_SECONDS = 10.0  # for what waits
ROWS_A_SECOND = 50  # under 1 % of a core, where a sample is an image of 128 x 128


class Watch:
    """What is taken of one model's batches. Slots' threads call it; that two of them take a row too many does no harm."""

    def __init__(
        self, model: Model, rows_a_second: int, inbox: queue.SimpleQueue[tuple[Watch, DecodedRows] | None]
    ) -> None:
        """inbox: of the thread that counts."""
        self.model, self.inbox = model, inbox
        self.allowed = max(1, int(rows_a_second * PERIOD))
        self.left, self.until = 0, 0.0

    def open(self) -> bool:
        """May a row be taken now?"""
        if self.left > 0:
            return True
        now = time.monotonic()
        if now < self.until:
            return False
        self.left, self.until = self.allowed, now + PERIOD
        return True

    def take(self, taken: DecodedRows) -> None:
        """Some of these rows, as many as are left of this half second."""
        rows = min(self.left, len(next(iter(taken.inputs.values()))))
        if rows > 0:
            self.left -= rows
            self.inbox.put((self, taken.first(rows)))


class Watcher:
    """Counts for all models of a server."""

    def __init__(
        self,
        models: Sequence[Model],
        metrics: Metrics,
        *,
        rows_a_second: int = ROWS_A_SECOND,
        journal: Journal | None = None,
    ) -> None:
        """Each model is watched from now on, where rows_a_second is not 0. Its reference is exported either way."""
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
        """Count what waits, hand it to the journal, and end the thread."""
        self.inbox.put(None)
        if self.counted:
            self.thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        while True:
            found = [self.inbox.get()]
            time.sleep(PERIOD)
            while not self.inbox.empty():
                found.append(self.inbox.get())
            groups: dict[tuple[Watch, bool], list[DecodedRows]] = {}
            for watch, taken in filter(None, found):
                groups.setdefault((watch, taken.originals is None), []).append(taken)
            for (watch, _), rows in groups.items():
                try:
                    signals = _signals(watch.model.spec, rows)
                    self.counted[watch].add(signals)
                    if self.journal:
                        _note(self.journal, watch.model, signals, rows)
                except Exception as error:  # a mistake here must not end the counting, nor the server
                    log("error", "drift signals could not be counted", error=repr(error))
            if None in found:
                return


def _signals(spec: ModelSpec, rows: Sequence[DecodedRows]) -> signals.Signals:
    """Of rows that all have originals, or none."""
    texts = [item for one in rows for item in one.originals or ()]
    sizes = [one.sizes for one in rows if one.sizes is not None]
    inputs, outputs = _joined([one.inputs for one in rows], spec), _joined([one.outputs for one in rows], spec)
    return signals.signals(inputs, outputs, spec, texts or None, np.concatenate(sizes) if sizes else None)


def _note(journal: Journal, model: Model, found: signals.Signals, rows: Sequence[DecodedRows]) -> None:
    """Hand samples with their answers to the journal; tensors of the protocol have no original to keep."""
    if rows[0].originals is not None:
        identities = [item_id(one.identity, place, one.items) for one in rows for place in range(len(one.answers))]
        originals = [item for one in rows for item in one.originals or ()]
        journal.keep(model, found, identities, originals, [answer for one in rows for answer in one.answers])


def _joined(parts: Sequence[Arrays], spec: ModelSpec) -> Arrays:
    """Along the first axis; token ids are padded to the longest."""
    found = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if name == "ids" and spec.text is not None:
            longest = max(array.shape[1] for array in arrays)
            pad = spec.text.pad_id
            arrays = [np.pad(a, ((0, 0), (0, longest - a.shape[1])), constant_values=pad) for a in arrays]
        found[name] = np.concatenate(arrays)
    return found


class Counts:
    """The series of one model: the bins' counters, and the reference beside them."""

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
                for bin_, middle in zip(signal.bins, signal.middles, strict=False):  # NaN has none
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

    def add(self, found: signals.Signals) -> None:
        """Count one value of each signal a sample."""
        for name, values in found.items():
            if name in self.bins:
                counts = drift.bin_counts(values, np.array(self.reference.signals[name].edges))
                for number in np.flatnonzero(counts):
                    self.bins[name][number].value += int(counts[number])
        if "contrast" in found:
            self.constant.value += int((found["contrast"] < signals.FLAT).sum())
