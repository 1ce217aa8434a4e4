"""`drift.json`: what a model's signals look like without drift, and when a difference counts. Numpy only: a server reads it.

A signal's values are counted in bins: under the least edge, between edges, from the last edge on, and one for what is no number.
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
    """Edges of `bins` bins of equal mass, from the least value to the largest, fewer where values repeat. NaN is left out.

    A constant gets two edges, so that it has a bin of its own.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.zeros(1)
    edges = rounded(np.unique(np.quantile(finite, np.linspace(0, 1, bins + 1))))
    return edges if len(edges) > 1 else np.array([edges[0], edges[0] + max(1e-6, 1e-6 * abs(edges[0]))])


def class_edges(classes: int) -> Edges:
    """Edges between the numbers of classes: a bin each."""
    return np.arange(1, classes, dtype=np.float64) - 0.5


def rounded(edges: Edges) -> Edges:
    """Six digits, so that the file does not hold the last bits of a sum."""
    return np.unique([float(f"{edge:.6g}") for edge in edges])


def bin_of(values: NDArray[np.float64], edges: Edges) -> NDArray[np.int64]:
    """Each value's bin: int64 (n,), from 0 to len(edges) + 1, the last for NaN."""
    return np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="right")).astype(np.int64)


def bin_counts(values: NDArray[np.float64], edges: Edges) -> Counts:
    """How many values fall in each bin: int64 (len(edges) + 2,)."""
    return np.bincount(bin_of(values, edges), minlength=len(edges) + 2)


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One signal's reference. mean and sd: of its evidence without drift, see `statistic`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    mean: float
    sd: float

    @property
    def bins(self) -> tuple[str, ...]:
        """Names of the bins, as metrics and pictures have them; they sort in their order."""
        return (*(f"{number:02}" for number in range(len(self.counts) - 1)), "nan")

    @property
    def noise(self) -> float:
        """The mean shift without drift, for each sqrt(1/n + 1/samples): of each bin the mean distance of two shares."""
        p = np.array(self.counts) / sum(self.counts)
        return float(np.sqrt(2 / np.pi * p * (1 - p)).sum() / 2)

    @property
    def middles(self) -> tuple[float, ...]:
        """A value for each bin but the last: its middle; of the two open ones their edge."""
        ends = (self.edges[0], *self.edges, self.edges[-1])
        return tuple((low + high) / 2 for low, high in pairwise(ends))


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What is known of the model's quality without drift.

    metric: its name. value: on the reference. max_loss: more is harm. signal: the one that tells how sure the model is. weights:
    for each way to estimate, the quality of a sample in each of that signal's bins.
    """

    metric: str
    value: float
    max_loss: float
    signal: str
    weights: dict[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class ReferenceLabels:
    """The confusion on the reference, rows of (predicted, true) counts, for black-box shift estimation; empty for a detector."""

    names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reference:
    """All of `drift.json`.

    samples: rows of the reference. least: no verdict under so many. threshold: three factors, see `statistic.threshold`. promise:
    what the threshold was made for.
    """

    samples: int
    least: int
    threshold: tuple[float, float, float]
    promise: dict[str, float]
    signals: dict[str, Signal]
    quality: Quality
    labels: ReferenceLabels

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"schema": SCHEMA_VERSION} | asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Reference:
        """The reverse of `to_dict`. Raises LooplineError on another schema and on what does not fit."""
        content = {key: _tuples(value) if key == "threshold" else value for key, value in content.items()}
        if (schema := content.pop("schema", None)) != SCHEMA_VERSION:
            raise LooplineError(f"drift.json has schema {schema}, this version reads {SCHEMA_VERSION}")
        try:
            signals = {name: _signal(name, row) for name, row in content["signals"].items()}
            quality = Quality(**_tuples(content["quality"]))
            found = cls(
                **content
                | {"signals": signals, "quality": quality, "labels": ReferenceLabels(**_tuples(content["labels"]))}
            )
            bins = len(signals[quality.signal].counts)
        except (KeyError, TypeError, AttributeError) as error:
            raise LooplineError(f"drift.json is not what this version reads: {error!r}") from error
        if any(len(weights) != bins for weights in quality.weights.values()):
            raise LooplineError(f"drift.json: {quality.signal} has {bins} bins, its quality another number")
        return found


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
    """Read a bundle's `drift.json`. Raises LooplineError."""
    try:
        return Reference.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise LooplineError(f"{path} cannot be read: {error}") from error
