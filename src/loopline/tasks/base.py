"""The interface of a task.

A task is a folder with four modules. `task.py` holds a subclass of `Task` and its only instance, `TASK`. It does without torch,
because the server imports it. `parameters.py` holds, as `PARAMETERS`, the class of such a model's part of params.yaml.
`training.py` and `evaluation.py` are the heavy modules, which fit `Trainer` and `Evaluator`. See docs/extend.md.
"""

from __future__ import annotations

import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from loopline.errors import LooplineError
from loopline.lib.arrays import Arrays
from loopline.tasks import image, tokens
from loopline.tasks.bootstrap import Scorer
from loopline.tasks.curves import Ranked
from loopline.tasks.plugins import part
from loopline.tasks.spec import ModelSpec, Truth

Json = dict[str, Any]
Content = Literal["image", "text"]
TruthColumn = Literal["label", "boxes"]
Split = Any  # `data.manifest.Split`: ids, inputs, targets, sizes, labels


class Task(ABC):
    """One kind of problem. Its methods take the graph's outputs by name, for n samples, and the truth of a split.

    name: the value of `task:` in params.yaml. content: what a sample is. truth: the manifest's column with the right answers. An
    answer holds its result under that name: `label`, a text that is compared with the truth, or `boxes`. has_classes: whether the
    labels are names of classes, which `ModelSpec.labels` lists.
    headline: the metric that gates and promotion use. quality_name: the name of the mean of `quality`.
    confidence: the signal, 0 to 1, that says how sure an answer is.
    question: the question that a prediction answers. use: the model card's first sentence, with {k} for the number of classes.
    limit: one of its sentences on what the model cannot do.
    """

    name: ClassVar[str]
    content: ClassVar[Content]
    truth: ClassVar[TruthColumn] = "label"
    has_classes: ClassVar[bool] = True
    headline: ClassVar[str]
    quality_name: ClassVar[str]
    confidence: ClassVar[str]
    question: ClassVar[str]
    use: ClassVar[str]
    limit: ClassVar[str]

    # Heavy modules, which only stages import

    def trainer(self) -> Trainer:
        """Return the folder's training.py."""
        trainer: Trainer = part(self.name, "training")
        return trainer

    def evaluator(self) -> Evaluator:
        """Return the folder's evaluation.py."""
        evaluator: Evaluator = part(self.name, "evaluation")
        return evaluator

    # Data

    def label_problem(self, label: str) -> str | None:
        """Return why ingest sets a sample with this label aside; None if the label is usable."""
        return None

    @abstractmethod
    def targets(self, truths: Sequence[Any], labels: tuple[str, ...]) -> Any:
        """Return the targets of n samples from the manifest's column `truth`: (n,), or an array for each sample."""

    # Serving

    def preprocessor(self, spec: ModelSpec, folder: Path) -> Callable[[Sequence[Any]], Arrays]:
        """Return the function from n encoded images, or texts, to the graph's inputs.

        It is the same for all tasks, so training and serving cannot differ: `image` uint8 (n, height, width, channels), or `ids` int64
        (n, length). folder: the bundle's or the training's, with the tokenizer.json of a text model.
        """
        if spec.image is not None:
            shape = spec.image
            return lambda images: {"image": image.batch(list(images), shape)}
        assert spec.text is not None, "a model takes images or texts"
        return tokens.tokenizer(spec.text, folder)

    @abstractmethod
    def answers(self, outputs: Arrays, spec: ModelSpec, sizes: NDArray[Any]) -> list[Json]:
        """Return a plain answer for each sample. sizes: (n, 2) width and height of the upright originals, zeros for texts."""

    def batch_answers(self, outputs: Arrays, spec: ModelSpec, sizes: NDArray[Any]) -> list[Json]:
        """Return the columns of `batch_columns` for each sample. Override it where `answers` is slow for many samples."""
        columns = self.batch_columns()
        return [{name: answer[name] for name in columns} for answer in self.answers(outputs, spec, sizes)]

    @abstractmethod
    def batch_columns(self) -> Mapping[str, Any]:
        """Return the columns of a batch prediction: name -> "string", "float32", or for a list of records [{field: type}]."""

    @abstractmethod
    def answer_schema(self, spec: ModelSpec) -> Json:
        """Return the JSON Schema of one answer."""

    def label_schema(self, spec: ModelSpec) -> Json:
        """Return the JSON Schema of a feedback label, with an example."""
        return {"enum": list(spec.labels), "example": spec.labels[0]}

    def check_label(self, label: Any, spec: ModelSpec, model: str) -> Any:
        """Return a feedback label as the journal keeps it. Raises LooplineError with the reason. model: the model's name."""
        return class_name(label, spec, model)

    # Measuring

    @abstractmethod
    def scorer(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> Scorer:
        """Return the metrics as a function of sample weights; `headline` is among them."""

    @abstractmethod
    def quality(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> NDArray[np.float64]:
        """Return how good each answer is, 0 to 1 (n,)."""

    def per_class(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> dict[str, Scorer]:
        """Return for each class a scorer of its metrics, the most telling first."""
        return {}

    def confidences(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return how sure each answer is, and whether it is right: float64 (d,), bool (d,)."""
        return self.output_signals(outputs, spec)[self.confidence], self.quality(outputs, truth, spec) > 0.5

    def ranked(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> dict[str, Ranked]:
        """Return each class's answers for its precision-recall curve."""
        return {}

    def pairs(self, outputs: Arrays, truth: Truth, spec: ModelSpec) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return k pairs of truth and answer as indices int64 (k, 2), and the names that they index."""
        return np.zeros((0, 2), np.int64), ()

    @abstractmethod
    def output_signals(self, outputs: Arrays, spec: ModelSpec) -> dict[str, NDArray[np.float64]]:
        """Return the drift signals of the answers, each float64 (n,); `confidence` is among them."""


@dataclass(frozen=True)
class Adoptable:
    """What params.yaml needs of a finished model: `input` of its block, and the sha256 of its weights.

    limits: values that this task has in other parts of the block, by part.
    """

    input: dict[str, Any]
    weights_sha256: str
    limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Trainer(Protocol):
    """A task's training.py. Its results depend on settings, data and seed alone."""

    QUANTIZATION: Literal["static", "dynamic"]

    def train(
        self,
        train: Split,
        val: Split,
        settings: Any,
        *,
        seed: int,
        out: Path,
        work: Path,
        log: Callable[[int, dict[str, float]], None],
    ) -> None:
        """Train; write `model.safetensors`, `config.json` and `history.csv` (epoch, train_loss, val_loss, ...) to `out`.

        For texts also the `tokenizer.json` of the library tokenizers. work: folder of checkpoints. log: takes epoch and figures.
        If the settings have `train.teacher`, it also takes `taught`: a `distillation.Taught`, or the train folder of a teacher without
        probabilities.
        """

    def reference(self, folder: Path) -> Callable[[Arrays], Arrays]:
        """Return the trained model as a function from the graph's inputs to its outputs, for the parity check of the graph."""

    def export(self, folder: Path, train: Split, val: Split, settings: Any, *, out: Path) -> ModelSpec:
        """Write the ONNX graph to `out`, with a dynamic batch, and return its specification."""

    def nodes_to_exclude(self, model: Any) -> list[str]:
        """Return the names of the nodes of an `onnx.ModelProto` that stay in FP32 when it is quantized."""


class Evaluator(Protocol):
    """A task's evaluation.py: the baselines of the model, and pictures of its answers."""

    def majority(self, train: Split, test: Split, spec: ModelSpec) -> Arrays:
        """Return the graph's outputs for the test split if every answer were the commonest one, or the mean of numbers."""

    def simple(
        self,
        splits: dict[str, Split],
        preprocess: Callable[[Sequence[Any]], Arrays],
        test: Arrays,
        spec: ModelSpec,
        *,
        seed: int,
    ) -> tuple[str, Arrays]:
        """Return a simple model's name and its outputs for the test split. test: the test split's input tensors."""

    def draw_examples(self, path: Path, outputs: Arrays, test: Split, spec: ModelSpec) -> None:
        """Draw some samples with their answers."""


def class_name(name: Any, spec: ModelSpec, model: str) -> str:
    """Return the class's name as ingest writes it. Raises LooplineError if the model has no such class."""
    if not isinstance(name, str):
        kind = "missing" if name is None else f"{_shown(name)}, not a text"
        raise LooplineError(f"the label is {kind}: send a class's name in quotes, as {_shown(spec.labels[0])}")
    composed = unicodedata.normalize("NFC", name)  # as ingest writes it; macOS decomposes characters
    if composed not in spec.labels:
        raise LooplineError(f"{composed[:40]!r} is not a class of {model}")
    return composed


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:40]


def record(properties: Json) -> Json:
    """Return the JSON Schema of an object with all of these properties and no others."""
    return {"type": "object", "required": list(properties), "properties": properties, "additionalProperties": False}
