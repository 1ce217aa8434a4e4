"""`drift.json`: the distribution of a model's signals without drift, and the threshold of alarms. Numpy only, for servers read it.

The values of a signal are counted in bins: below the first edge, between edges, from the last edge on, and NaN.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.errors import LooplineError

SCHEMA_VERSION = 2
Edges = NDArray[np.float64]
Counts = NDArray[np.int64]


def quantile_edges(values: NDArray[np.float64], bins: int) -> Edges:
    """Return the edges of `bins` bins of equal mass from the smallest value to the largest; fewer if values repeat. NaN is ignored.

    A constant gets two edges, so that it has a bin of its own.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.zeros(1)
    edges = rounded(np.unique(np.quantile(finite, np.linspace(0, 1, bins + 1))))
    return edges if len(edges) > 1 else np.array([edges[0], edges[0] + max(1e-6, 1e-6 * abs(edges[0]))])


def class_edges(classes: int) -> Edges:
    """Return edges that give each class number a bin of its own."""
    return np.arange(1, classes, dtype=np.float64) - 0.5


def rounded(edges: Edges) -> Edges:
    """Round edges to six digits, so that the file does not hold the last bits of a sum; return them sorted, without repeats."""
    return np.unique([float(f"{edge:.6g}") for edge in edges])


def bin_of(values: NDArray[np.float64], edges: Edges) -> NDArray[np.int64]:
    """Return the bin of each value: int64 (n,), from 0 to len(edges) + 1. The last bin is for NaN."""
    return np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="right")).astype(np.int64)


def bin_counts(values: NDArray[np.float64], edges: Edges) -> Counts:
    """Count the values in each bin: int64 (len(edges) + 2,)."""
    return np.bincount(bin_of(values, edges), minlength=len(edges) + 2)


@dataclass(frozen=True, kw_only=True)
class Signal:
    """The reference of one signal. mean and sd: those of its evidence without drift, see `statistic`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    mean: float
    sd: float

    @property
    def bins(self) -> tuple[str, ...]:
        """The names of the bins in metrics and pictures. They sort in the order of the bins."""
        return (*(f"{number:02}" for number in range(len(self.counts) - 1)), "nan")

    @property
    def noise(self) -> float:
        """The mean shift without drift divided by sqrt(1/n + 1/samples): half the sum of the bins' mean distances of two shares."""
        p = np.array(self.counts) / sum(self.counts)
        return float(np.sqrt(2 / np.pi * p * (1 - p)).sum() / 2)

    @property
    def middles(self) -> tuple[float, ...]:
        """The middle of each bin except that for NaN; for the two open bins their edge."""
        ends = (self.edges[0], *self.edges, self.edges[-1])
        return tuple((low + high) / 2 for low, high in pairwise(ends))


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The quality of the model without drift.

    metric: name of the quality. value: quality on the reference. max_loss: a larger loss is harm. signal: name of the signal of
    confidence. weights: name of an estimate -> quality of a sample in each bin of that signal.
    """

    metric: str
    value: float
    max_loss: float
    signal: str
    weights: dict[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class ReferenceLabels:
    """The confusion on the reference for black-box shift estimation: counts by predicted, then true class; empty for a detector."""

    names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The content of `drift.json`.

    samples: rows of the reference. least: samples that a verdict needs. threshold: three factors, see `statistic.threshold`.
    promise: rate of false alarms and other parameters for which the threshold was calibrated.
    """

    samples: int
    least: int
    threshold: tuple[float, float, float]
    promise: dict[str, float]
    signals: dict[str, Signal]
    quality: Quality
    labels: ReferenceLabels

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file in plain JSON types."""
        return {"schema": SCHEMA_VERSION} | asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Reference:
        """Reverse `to_dict`. Raises LooplineError on another schema and on content that does not fit."""
        content = {key: _tuples(value) if key == "threshold" else value for key, value in content.items()}
        if (schema := content.pop("schema", None)) != SCHEMA_VERSION:
            raise LooplineError(f"drift.json has schema {schema}, this version reads {SCHEMA_VERSION}")
        try:
            signals = {name: _signal(name, row) for name, row in content["signals"].items()}
            quality = Quality(**_tuples(content["quality"]))
            reference = cls(
                **content
                | {"signals": signals, "quality": quality, "labels": ReferenceLabels(**_tuples(content["labels"]))}
            )
            bins = len(signals[quality.signal].counts)
        except (KeyError, TypeError, AttributeError) as error:
            raise LooplineError(f"drift.json is not what this version reads: {error!r}") from error
        if any(len(weights) != bins for weights in quality.weights.values()):
            raise LooplineError(
                f"drift.json: {quality.signal} has {bins} bins, but its quality has weights for another number"
            )
        return reference


def _signal(name: str, row: dict[str, Any]) -> Signal:
    signal = Signal(**_tuples(row))
    if len(signal.counts) != len(signal.edges) + 2 or list(signal.edges) != sorted(set(signal.edges)):
        raise LooplineError(f"drift.json: {name} needs rising edges and two bins more than edges")
    return signal


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def read(path: Path) -> Reference:
    """Read a bundle's `drift.json`. Raises LooplineError if it cannot be read or does not fit."""
    try:
        return Reference.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise LooplineError(f"{path} cannot be read: {error}") from error
