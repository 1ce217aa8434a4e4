"""What the methods look at: signals, answers and embedding of the held-out samples, as they are and after each shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.data import manifest
from loopline.monitoring import shifts
from loopline.release import bundle, runner
from loopline.tasks import signals
from loopline.tasks.spec import ModelSpec


@dataclass(frozen=True)
class Features:
    """Of n samples. answers: softmax outputs, or the best score of each class (n, classes). quality: 1 for right, or F1."""

    signals: dict[str, NDArray[np.float64]]
    answers: NDArray[np.float64]
    embedding: NDArray[np.float64]
    quality: NDArray[np.float64]


@dataclass(frozen=True)
class Pool:
    """All held-out samples of a model. shifted: by name and strength."""

    name: str
    spec: ModelSpec
    metric: str
    targets: NDArray[np.int64] | None
    plain: Features
    shifted: dict[tuple[str, int], Features]

    @property
    def samples(self) -> int:
        """How many."""
        return len(self.plain.quality)

    def window(self, rows: NDArray[np.int64], changed: NDArray[np.bool_], shift: tuple[str, int] | None) -> Features:
        """The features of a window's samples."""
        other = self.shifted.get(shift, self.plain) if shift else self.plain

        def mixed(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
            where = changed.reshape(-1, *[1] * (a.ndim - 1))
            return np.where(where, b[rows], a[rows])

        names = self.plain.signals
        return Features(
            {name: mixed(names[name], other.signals[name]) for name in names},
            mixed(self.plain.answers, other.answers),
            mixed(self.plain.embedding, other.embedding),
            mixed(self.plain.quality, other.quality),
        )


class _Both:
    """Validation and test split as one."""

    def __init__(self, parts: Sequence[manifest.Split]) -> None:
        self.inputs: list[Any] = [one for part in parts for one in part.inputs]
        self.sizes = np.concatenate([part.sizes for part in parts])
        lists = isinstance(parts[0].targets, list)
        self.targets: Any = (
            [t for p in parts for t in p.targets] if lists else np.concatenate([p.targets for p in parts])
        )


def pool(project: Path, name: str, most: int) -> Pool:
    """Of a model in a project's folder, at most so many samples."""
    opened = bundle.read(project / "models" / name / "bundle")
    spec = opened.manifest.spec
    task = import_module(f"loopline.tasks.{spec.task}")
    path = project / "data" / name / "manifest.parquet"
    both = _Both([manifest.load_split(path, part) for part in ("val", "test")])
    keep = np.sort(np.random.default_rng(0).permutation(len(both.inputs))[:most])
    both.inputs, both.sizes = [both.inputs[k] for k in keep], both.sizes[keep]
    both.targets = [both.targets[k] for k in keep] if isinstance(both.targets, list) else both.targets[keep]
    preprocess = task.preprocessor(spec, opened.folder)

    def features(inputs: list[Any]) -> Features:
        prepared = preprocess(inputs)
        outputs = runner.run(opened.model, prepared)
        found = signals.signals(prepared, outputs, spec, inputs, both.sizes if spec.image else None)
        return Features(
            found, _answers(outputs, spec), outputs["embedding"].astype(float), task.quality(outputs, both, spec)
        )

    shifted = {}
    for shift in shifts.names(texts=spec.image is None):
        for strength in (1, 2, 3):
            rng = np.random.default_rng([3, strength])
            shifted[shift, strength] = features([shifts.shifted(one, shift, strength, rng) for one in both.inputs])
    targets = None if isinstance(both.targets, list) else both.targets
    return Pool(opened.manifest.name, spec, task.QUALITY, targets, features(both.inputs), shifted)


def _answers(outputs: dict[str, NDArray[Any]], spec: ModelSpec) -> NDArray[np.float64]:
    if spec.task != "detection":
        return outputs["probabilities"].astype(float)
    best = np.zeros((len(outputs["scores"]), len(spec.labels)))
    for label in range(len(spec.labels)):
        best[:, label] = np.where(outputs["classes"] == label, outputs["scores"], 0).max(1)
    return best
