"""Check that two graphs (torch, FP32 ONNX, INT8 ONNX) give the same outputs for the same samples."""

from __future__ import annotations

import numpy as np

from loopline.errors import LooplineError
from loopline.lib.arrays import Arrays


def answering(outputs: Arrays) -> list[str]:
    """Return the names of the outputs that carry the answer: all but the embedding, and the boxes and classes of scores."""
    return [name for name in outputs if name not in ("embedding", "boxes", "classes")]


def largest_difference(a: Arrays, b: Arrays) -> dict[str, float]:
    """Return each output's largest absolute difference. Boxes: in input pixels, of those that a side scores above 0.1."""
    if a.keys() != b.keys():
        raise LooplineError(f"the graphs differ in their outputs: {sorted(a)} and {sorted(b)}")
    differences = {}
    for name in a:
        if a[name].shape != b[name].shape:
            raise LooplineError(
                f"output {name!r} has shape {a[name].shape} on one side and {b[name].shape} on the other"
            )
        gap = np.abs(a[name].astype(np.float64) - b[name].astype(np.float64))
        if name in ("boxes", "classes"):
            gap = gap[np.maximum(a["scores"], b["scores"]) > 0.1]
        differences[name] = float(gap.max(initial=0.0))
    return differences


def check(a: Arrays, b: Arrays, *, tolerance: float, what: str) -> dict[str, float]:
    """Return the differences of all outputs. Raises LooplineError if an answer's is above the tolerance. what: the two sides."""
    differences = largest_difference(a, b)
    for name in answering(a):
        if not differences[name] <= tolerance:
            raise LooplineError(
                f"{what} differ by {differences[name]:.2g} in {name}, {tolerance:.2g} is allowed: "
                "check that both sides preprocess alike (channel order, scaling, padding) and that the opset is supported"
            )
    return differences
