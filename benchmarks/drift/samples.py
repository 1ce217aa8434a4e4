"""What the methods look at: signals, answers and embedding of the held-out samples, as they are and after each shift."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.drift.protocol import OTHER
from numpy.typing import NDArray

from loopline import settings, tasks
from loopline.data import manifest
from loopline.lib import sessions
from loopline.release import bundle
from loopline.simulate import other_domain, shifts
from loopline.tasks import image, signals
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
    """All held-out samples of a model. companion: the other data set. shifted: by name and strength."""

    name: str
    dataset: str
    companion: str | None
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


@dataclass
class _Truth:
    """Samples and what is right, as `tasks` ask for it."""

    inputs: list[Any]
    sizes: NDArray[np.int32]
    targets: Any


def _held_out(path: Path, most: int) -> _Truth:
    """Validation and test split as one, at most so many samples."""
    parts = [manifest.load_split(path, part) for part in ("val", "test")]
    inputs: list[Any] = [one for part in parts for one in part.inputs]
    targets: list[Any] = [one for part in parts for one in part.targets]
    keep = np.sort(np.random.default_rng(0).permutation(len(inputs))[:most])
    kept = [targets[k] for k in keep]
    sizes = np.concatenate([part.sizes for part in parts])[keep]
    chosen = [_rewritten(inputs[k]) for k in keep]
    return _Truth(chosen, sizes, kept if isinstance(parts[0].targets, list) else np.array(kept))


def _rewritten(sample: Any) -> Any:
    """An image as shifted images are written: else the size of its file would betray every shift."""
    none = np.random.default_rng(0)
    return sample if isinstance(sample, str) else shifts.shifted_image(sample, None, 0, none)


def _foreign(companion: str, spec: ModelSpec, rows: int) -> _Truth:
    """So many samples of another data set, some repeatedly. Right is the class of the same name; where there is none, nothing is."""
    found = other_domain.read(companion, spec.task, rows)
    chosen = [found[k % len(found)] for k in range(rows)]
    labels = {name: number for number, name in enumerate(spec.labels)}
    targets: Any = np.array([labels.get(one.label or "", -1) for one in chosen])
    if spec.image is None:
        return _Truth([one.text for one in chosen], np.zeros((rows, 2), np.int32), targets)
    inputs = [_rewritten(one.image) for one in chosen]
    sizes = np.array([image.decode(one, 3).shape[1::-1] for one in inputs], np.int32)
    return _Truth(inputs, sizes, targets)


def pool(project: Path, name: str, most: int) -> Pool:
    """Of a model in a project's folder, at most so many samples."""
    opened = bundle.read(project / "models" / name / "bundle")
    spec = opened.manifest.spec
    task = tasks.find(spec.task)
    both = _held_out(project / "data" / name / "manifest.parquet", most)
    preprocess = task.preprocessor(spec, opened.folder)

    def features(truth: _Truth, *, known: bool = True) -> Features:
        """known: there is a right answer; without one, none is."""
        prepared = preprocess(truth.inputs)
        outputs = sessions.run(opened.model, prepared)
        found = signals.signals(prepared, outputs, spec, truth.inputs, truth.sizes if spec.image else None)
        quality = task.quality(outputs, truth, spec) if known else np.zeros(len(truth.inputs))
        return Features(found, _answers(outputs, spec), outputs["embedding"].astype(float), quality)

    shifted = {}
    for shift in shifts.names(texts=spec.image is None):
        for strength in (1, 2, 3):
            rng = np.random.default_rng([3, strength])
            inputs = [shifts.shifted(one, shift, strength, rng) for one in both.inputs]
            shifted[shift, strength] = features(replace(both, inputs=inputs))
    dataset = settings.model(name, project / "params.yaml")[1].dataset
    companion = other_domain.COMPANIONS.get(dataset)
    if companion:
        foreign = _foreign(companion, spec, len(both.inputs))
        shifted[OTHER, 1] = features(foreign, known=spec.task != "detection")
    targets = None if isinstance(both.targets, list) else both.targets
    return Pool(name, dataset, companion, spec, task.quality_name, targets, features(both), shifted)


def _answers(outputs: dict[str, NDArray[Any]], spec: ModelSpec) -> NDArray[np.float64]:
    if spec.task != "detection":
        return outputs["probabilities"].astype(float)
    best = np.zeros((len(outputs["scores"]), len(spec.labels)))
    for label in range(len(spec.labels)):
        best[:, label] = np.where(outputs["classes"] == label, outputs["scores"], 0).max(1)
    return best
