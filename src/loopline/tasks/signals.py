"""Drift signals: a few figures a request, from its input and its answer. Numpy only, constant work a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.tasks.spec import ModelSpec

Signals = dict[str, NDArray[np.float64]]
COUNTED = 0.25  # a box with at least this score counts as seen


def signals(
    inputs: dict[str, NDArray[Any]], originals: Sequence[bytes | str], outputs: dict[str, NDArray[Any]], spec: ModelSpec
) -> Signals:
    """Every signal of n samples, each float64 (n,).

    inputs and outputs: the graph's tensors, padding included. originals: the encoded images, or the texts.
    """
    found = _of_images(inputs["image"]) if "image" in inputs else _of_texts(originals)
    found["bytes"] = np.array([len(x) if isinstance(x, bytes) else len(x.encode()) for x in originals], np.float64)
    found |= _of_boxes(outputs) if spec.task == "detection" else _of_classes(outputs["probabilities"])
    return found | {f"embedding_{i}": column.astype(np.float64) for i, column in enumerate(outputs["embedding"].T)}


def _of_images(images: NDArray[np.uint8]) -> Signals:
    flat = images.reshape(len(images), -1)
    return {"brightness": flat.mean(1, dtype=np.float64), "contrast": flat.std(1, dtype=np.float64)}


def _of_texts(texts: Sequence[bytes | str]) -> Signals:
    return {"length": np.array([len(text) for text in texts], np.float64)}


def _of_classes(probabilities: NDArray[Any]) -> Signals:
    p = probabilities.astype(np.float64)
    top = np.sort(p, axis=1)[:, ::-1]
    return {
        "predicted_class": p.argmax(1).astype(np.float64),
        "top_probability": top[:, 0],
        "margin": top[:, 0] - top[:, 1] if p.shape[1] > 1 else top[:, 0],
        "entropy": -(p * np.log(np.clip(p, 1e-12, 1))).sum(1),
    }


def _of_boxes(outputs: dict[str, NDArray[Any]]) -> Signals:
    scores, boxes = outputs["scores"].astype(np.float64), outputs["boxes"].astype(np.float64)
    seen = scores >= COUNTED
    count = seen.sum(1)
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    with np.errstate(invalid="ignore"):  # no box seen: not a number, which has a bin of its own
        return {
            "boxes": count.astype(np.float64),
            "mean_score": (scores * seen).sum(1) / count,
            "mean_box_area": (areas * seen).sum(1) / count,
            "top_score": scores[:, 0],
        }


def bin_edges(values: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Inner edges of bins of equal mass, fewer where values repeat: sorted float64, at most bins - 1. NaN is left out."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.zeros(0)
    return np.unique(np.quantile(finite, np.arange(1, bins) / bins))


def bin_counts(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many values fall in each bin; the last count is that of NaN: int64 (len(edges) + 2,)."""
    index = np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="right"))
    return np.bincount(index, minlength=len(edges) + 2)
