"""Image classification: one label per image. Text classification shares the answers and the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from loopline.lib.arrays import Arrays
from loopline.tasks.base import Content, Json, Task, record
from loopline.tasks.bootstrap import Scorer, Weights
from loopline.tasks.curves import Ranked
from loopline.tasks.signals import CLASS, Signals
from loopline.tasks.spec import ModelSpec, Truth

BINS = 10  # of the calibration error


class Classification(Task):
    """One of k classes for each image, with a probability for each class."""

    name = "classification"
    content: ClassVar[Content] = "image"
    headline = "accuracy"
    quality_name = "accuracy"
    confidence = "top_probability"
    question = "What is in this image?"
    use = "Says which of {k} classes an image shows, with a probability for each."
    limit = "Every input gets one of these classes, even one that shows none of them."

    def targets(self, truths: Sequence[Any], labels: tuple[str, ...]) -> NDArray[np.int64]:
        """Return class indices int64 (n,)."""
        index = {label: number for number, label in enumerate(labels)}
        return np.array([index[label] for label in truths], np.int64)

    def answers(self, outputs: Arrays, spec: ModelSpec, sizes: NDArray[Any]) -> list[dict[str, Any]]:
        """Return for each sample `{"label", "probability", "probabilities"}`, classes in falling order of probability."""
        results = []
        for row in outputs["probabilities"]:
            order = np.argsort(-row, kind="stable")
            ranked = {spec.labels[i]: float(row[i]) for i in order}
            results.append(
                {"label": spec.labels[order[0]], "probability": float(row[order[0]]), "probabilities": ranked}
            )
        return results

    def batch_columns(self) -> Mapping[str, Any]:
        """Return the columns of the class and its probability."""
        return {"label": "string", "probability": "float32"}

    def batch_answers(self, outputs: Arrays, spec: ModelSpec, sizes: NDArray[Any]) -> list[Json]:
        """Return label and probability. Ranking all classes would take longer than the model does."""
        probabilities = outputs["probabilities"]
        best = zip(probabilities.argmax(1).tolist(), probabilities.max(1).tolist(), strict=True)
        return [{"label": spec.labels[place], "probability": value} for place, value in best]

    def answer_schema(self, spec: ModelSpec) -> Json:
        """Return the schema of `label`, `probability`, and the `probabilities` of all classes."""
        share = {"type": "number", "minimum": 0, "maximum": 1.000001}
        return record(
            {
                "label": {"enum": list(spec.labels)},
                "probability": share,
                "probabilities": record(dict.fromkeys(spec.labels, share)),
            }
        )

    def scorer(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> Scorer:
        """Return the metrics as a function of sample weights: accuracy, macro_f1, log_loss, calibration_error.

        calibration_error is the expected calibration error over 10 bins of equal width (Naeini et al., AAAI 2015).
        macro_f1 is the mean over the classes that occur in the targets or the predictions.
        """
        probabilities, targets = np.asarray(outputs["probabilities"], np.float64), truth.targets
        predicted = probabilities.argmax(1)
        confidence = probabilities.max(1)
        hit = (predicted == targets).astype(np.float64)
        loss = -np.log(np.clip(probabilities[np.arange(len(targets)), targets], 1e-12, 1))
        bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        classes = probabilities.shape[1]

        def score(weights: Weights | None = None) -> dict[str, float]:
            w = np.ones(len(targets)) if weights is None else weights
            total = w.sum()
            if not total:  # a resample without a sample of the slice
                return dict.fromkeys(("accuracy", "macro_f1", "log_loss", "calibration_error"), float("nan"))
            true = np.bincount(targets, w * hit, classes)
            both = np.bincount(targets, w, classes) + np.bincount(predicted, w, classes)
            occurs = both > 0
            gap = np.bincount(bins, w * (confidence - hit), BINS)
            return {
                "accuracy": float((w * hit).sum() / total),
                "macro_f1": float((2 * true[occurs] / both[occurs]).mean()),
                "log_loss": float((w * loss).sum() / total),
                "calibration_error": float(np.abs(gap).sum() / total),
            }

        return score

    def per_class(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> dict[str, Scorer]:
        """Return for each class a scorer of its recall and precision."""
        predicted, targets = np.asarray(outputs["probabilities"]).argmax(1), truth.targets

        def of(index: int) -> Scorer:
            is_class, answered = targets == index, predicted == index
            hit = is_class & answered

            def score(weights: Weights | None = None) -> dict[str, float]:
                w = np.ones(len(targets)) if weights is None else weights
                with np.errstate(invalid="ignore"):
                    return {
                        "recall": float(np.divide((w * hit).sum(), (w * is_class).sum())),
                        "precision": float(np.divide((w * hit).sum(), (w * answered).sum())),
                    }

            return score

        return {label: of(index) for index, label in enumerate(spec.labels)}

    def confidences(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return how sure each answer is and whether it is right: float64 (n,), bool (n,)."""
        probabilities = np.asarray(outputs["probabilities"], np.float64)
        return probabilities.max(1), probabilities.argmax(1) == truth.targets

    def quality(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> NDArray[np.float64]:
        """Return 1 for each right answer and 0 for the others (n,). The mean is the accuracy."""
        return np.asarray(np.asarray(outputs["probabilities"]).argmax(1) == truth.targets, np.float64)

    def ranked(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> dict[str, Ranked]:
        """Return each class against the rest, for its precision-recall curve."""
        probabilities = np.asarray(outputs["probabilities"], np.float64)
        hits = {label: truth.targets == index for index, label in enumerate(spec.labels)}
        return {
            label: Ranked(probabilities[:, i], hits[label], int(hits[label].sum()))
            for i, label in enumerate(spec.labels)
        }

    def pairs(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return true and predicted class indices int64 (n, 2), and the names that they index."""
        predicted = np.asarray(outputs["probabilities"]).argmax(1)
        return np.stack([truth.targets, predicted], 1), spec.labels

    def output_signals(self, outputs: Arrays, spec: ModelSpec) -> Signals:
        """Return predicted_class, top_probability, margin to the next class, and entropy in nats."""
        p = outputs["probabilities"].astype(np.float64)
        top = np.sort(p, axis=1)[:, ::-1]
        return {
            CLASS: p.argmax(1).astype(np.float64),
            "top_probability": top[:, 0],
            "margin": top[:, 0] - top[:, 1] if p.shape[1] > 1 else top[:, 0],
            "entropy": -(p * np.log(np.clip(p, 1e-12, 1))).sum(1),
        }


TASK = Classification()
