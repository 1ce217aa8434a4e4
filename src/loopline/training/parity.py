"""Do torch, FP32 ONNX and INT8 ONNX say the same about the same samples?"""

from __future__ import annotations

import numpy as np

from loopline.errors import LooplineError
from loopline.lib.arrays import Arrays


def answering(outputs: Arrays) -> list[str]:
    """Return the names of the outputs that carry the answer: all but the embedding, and what belongs to a box's score."""
    return [name for name in outputs if name not in ("embedding", "boxes", "classes")]


def largest_difference(a: Arrays, b: Arrays) -> dict[str, float]:
    """Largest absolute difference for each output. For boxes: in input pixels, of those that either side scores above 0.1."""
    if a.keys() != b.keys():
        raise LooplineError(f"the graphs differ in their outputs: {sorted(a)} and {sorted(b)}")
    found = {}
    for name in a:
        if a[name].shape != b[name].shape:
            raise LooplineError(
                f"output {name!r} has shape {a[name].shape} on one side and {b[name].shape} on the other"
            )
        gap = np.abs(a[name].astype(np.float64) - b[name].astype(np.float64))
        if name in ("boxes", "classes"):
            gap = gap[np.maximum(a["scores"], b["scores"]) > 0.1]
        found[name] = float(gap.max(initial=0.0))
    return found


def check(a: Arrays, b: Arrays, *, tolerance: float, what: str) -> dict[str, float]:
    """The differences of all outputs; raises LooplineError where an answer's is above the tolerance, naming the likely cause."""
    differences = largest_difference(a, b)
    for name in answering(a):
        if not differences[name] <= tolerance:
            raise LooplineError(
                f"{what} differ by {differences[name]:.2g} in {name}, {tolerance:.2g} is allowed: "
                "is the preprocessing the same on both sides (channel order, scaling, padding), and the opset supported?"
            )
    return differences
