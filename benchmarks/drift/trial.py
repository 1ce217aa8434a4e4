"""Run the protocol for one model: the figure of every method for every window, and Loopline's estimate of harm."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.drift import peers, protocol, samples
from benchmarks.drift.samples import Features, Pool

from loopline import settings
from loopline.drift import harm, reference, statistic, thresholds
from loopline.simulate import shifts
from loopline.stages import calibrate

LOOPLINE = "Loopline"
# Streams for each reference. References differ more than the streams of one reference: twenty streams of each of a hundred references
# gave a standard error of a sixth of the promised rate, and five of each of four hundred half of that.
STREAMS_EACH = 5
Figures = dict[str, Any]


def counts(features: Features, ref: reference.Reference) -> dict[str, Any]:
    """Return the counts of each signal's bins, as a server counts them."""
    return {name: reference.bin_counts(features.signals[name], np.array(s.edges)) for name, s in ref.signals.items()}


def make_reference(pool: Pool, rows: Any, options: settings.Calibrate, seed: int) -> reference.Reference:
    """Return the reference of some held-out samples, as the pipeline's stage makes it."""
    part = {name: values[rows] for name, values in pool.plain.signals.items()}
    return calibrate.make(
        part, pool.plain.quality[rows], spec=pool.spec, metric=pool.metric, targets=None, options=options, seed=seed
    )


def run(project: Path, name: str, size: protocol.Size, most: int) -> Figures:
    """Return all figures of a model. most: largest number of held-out samples."""
    warnings.simplefilter("ignore")  # tests on constant columns warn
    pool = samples.pool(project, name, most)
    options = settings.model(name, project / "params.yaml")[1].calibrate
    kinds = shifts.names(texts=pool.spec.image is None)
    conditions = protocol.conditions(kinds, classes=pool.targets is not None, other=pool.companion is not None)
    cost = {at: pool.plain.quality.mean() - _quality(pool, at) for at in conditions}
    references: dict[int, tuple[Features, reference.Reference]] = {}
    seconds = dict.fromkeys([LOOPLINE, *peers.METHODS], 0.0)
    rows: list[Figures] = []
    for window in protocol.windows(pool.samples, pool.targets, conditions, size):
        if window.reference not in references:
            chosen = protocol.reference(pool.samples, window.reference)
            before = pool.window(chosen, np.zeros(len(chosen), bool), None)
            references[window.reference] = before, make_reference(pool, chosen, options, window.reference)
        before, ref = references[window.reference]
        at = window.condition
        now = pool.window(window.rows, window.changed, (at.shift, at.strength) if at else None)
        start = time.perf_counter()
        counted = counts(now, ref)
        mover = statistic.movers(counted, ref)[0]
        seconds[LOOPLINE] += time.perf_counter() - start
        judged = harm.judge(counted, ref)
        assert judged is not None, "every window has enough samples"
        row: Figures = {
            "n": window.n,
            "at": [at.shift, at.strength, at.share] if at else None,
            "quality": float(now.quality.mean()),
            "before": ref.quality.value,
            "error": float(np.sqrt(now.quality.var() / window.n + before.quality.var() / len(before.quality))),
            "cost": float(cost[at]) if at else 0.0,
            "estimates": judged.estimates,
            "loss": judged.loss,
            "harmful": judged.harmful,
            "mover": mover.signal,
            LOOPLINE: mover.score,
        }
        for method, figure_of in peers.METHODS.items():
            start = time.perf_counter()
            row[method] = figure_of(before, now)
            seconds[method] += time.perf_counter() - start
        rows.append(row)
    per_window = {method: spent / len(rows) for method, spent in seconds.items()}
    return {
        "model": name,
        "dataset": pool.dataset,
        "companion": pool.companion,
        "samples": pool.samples,
        "metric": pool.metric,
        "rows": rows,
        "seconds": per_window,
        "promise": options.false_alarms,
        **realised(pool, options, size.streams // STREAMS_EACH),
        "streams": size.streams,
    }


def _quality(pool: Pool, at: protocol.Condition) -> float:
    """Return the mean quality of many samples under a condition."""
    many = protocol.shifted(0, protocol.MANY, at, np.arange(pool.samples), pool.targets, np.random.default_rng(3))
    other = pool.shifted.get((at.shift, at.strength), pool.plain)
    return float(np.where(many.changed, other.quality[many.rows], pool.plain.quality[many.rows]).mean())


def realised(pool: Pool, options: settings.Calibrate, references: int, n: int = 200) -> dict[str, float]:
    """Return the share of the streams without drift that raise an alarm, and its standard error.

    A stream has `options.windows` windows of n samples. The standard error is that of a mean over the references, because the streams
    of one reference are not independent.
    """
    shares, steps = [], options.windows * thresholds.EVALUATIONS
    groups = np.arange(options.windows * n) * steps // (options.windows * n)
    quick = options.model_copy(update={"streams": 100})
    for number in range(references):
        ref = make_reference(pool, protocol.reference(pool.samples, 1000 + number), quick, number)
        rng, alarms = np.random.default_rng([4, number]), []
        for _ in range(STREAMS_EACH):
            rows = rng.integers(pool.samples, size=options.windows * n)
            alarms.append(max(_worst(pool, name, rows, groups, n, ref) for name in ref.signals) > 1)
        shares.append(np.mean(alarms))
    return {"realised": float(np.mean(shares)), "realised_error": float(np.std(shares, ddof=1) / np.sqrt(references))}


def _worst(pool: Pool, name: str, rows: Any, groups: Any, n: int, ref: reference.Reference) -> float:
    """Return the largest score of a signal over a stream's evaluations."""
    signal, steps = ref.signals[name], int(groups[-1]) + 1
    bins = reference.bin_of(pool.plain.signals[name][rows], np.array(signal.edges))
    width = len(signal.counts)
    table = np.bincount(bins * steps + groups, minlength=width * steps).reshape(width, steps)
    sums = np.cumsum(np.pad(table, ((0, 0), (1, 0))), axis=1)
    sliding = sums[:, thresholds.EVALUATIONS :] - sums[:, : -thresholds.EVALUATIONS]
    largest = float(statistic.evidence(sliding, np.array(signal.counts)[:, None]).max())
    return (largest - signal.mean) / signal.sd / statistic.threshold(n, ref.samples, ref)
