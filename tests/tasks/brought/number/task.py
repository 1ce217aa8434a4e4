"""The number that an image shows. The graph answers with `value` (n,) and `embedding` (n, d)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.errors import LooplineError
from loopline.lib.arrays import Arrays
from loopline.tasks.base import Json, Task, record
from loopline.tasks.bootstrap import Scorer, Weights
from loopline.tasks.spec import ModelSpec, Truth


class Number(Task):
    """A number for each image. An answer is right if it is the true number after rounding."""

    name = "number"
    content = "image"
    has_classes = False
    headline = "within_half"
    quality_name = "within_half"
    confidence = "roundness"
    question = "Which number does this image show?"
    use = "Says which number an image shows."
    limit = "Every image gets a number, even one that shows none."

    def label_problem(self, label: str) -> str | None:
        """Only numbers are labels."""
        try:
            return None if math.isfinite(float(label)) else "label that is not a finite number"
        except ValueError:
            return "label that is not a number"

    def targets(self, truths: Sequence[Any], labels: tuple[str, ...]) -> NDArray[np.float64]:
        """The numbers, float64 (n,)."""
        return np.array([float(label) for label in truths])

    def answers(self, outputs: Arrays, spec: ModelSpec, sizes: NDArray[Any]) -> list[Json]:
        """The value, and the rounded one as the label."""
        return [{"label": str(round(float(value))), "value": float(value)} for value in outputs["value"]]

    def batch_columns(self) -> Mapping[str, Any]:
        """Label and value."""
        return {"label": "string", "value": "float32"}

    def answer_schema(self, spec: ModelSpec) -> Json:
        """Label and value."""
        return record({"label": {"type": "string"}, "value": {"type": "number"}})

    def label_schema(self, spec: ModelSpec) -> Json:
        """A whole number as text."""
        return {"type": "string", "pattern": "^-?[0-9]+$", "example": "7"}

    def check_label(self, label: Any, spec: ModelSpec, model: str) -> str:
        """Refuse what is not a whole number."""
        if not isinstance(label, str) or not label.removeprefix("-").isdecimal():
            raise LooplineError(f"the label {str(label)[:40]!r} is not a whole number: send it in quotes")
        return label

    def scorer(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> Scorer:
        """within_half: the share that is right after rounding. mean_absolute_error."""
        right, apart = self.quality(outputs, truth, spec), np.abs(outputs["value"] - truth.targets)

        def score(weights: Weights | None = None) -> dict[str, float]:
            w = np.ones(len(right)) if weights is None else weights
            with np.errstate(invalid="ignore"):
                return {
                    "within_half": float(np.divide(w @ right, w.sum())),
                    "mean_absolute_error": float(np.divide(w @ apart, w.sum())),
                }

        return score

    def quality(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> NDArray[np.float64]:
        """1 where the rounded value is right."""
        return np.asarray(np.abs(outputs["value"] - truth.targets) < 0.5, np.float64)

    def output_signals(self, outputs: Arrays, spec: ModelSpec) -> dict[str, NDArray[np.float64]]:
        """The value, and how near it is to a whole number."""
        value = outputs["value"].astype(np.float64)
        return {"value": value, "roundness": 1 - 2 * np.abs(value - np.round(value))}


TASK = Number()
