"""The data that the methods compare: signals, answers and embedding of the held-out samples, as they are and after each shift."""

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
    """The features of n samples.

    signals: name -> values, (n,). answers: softmax outputs, or the best score of each class, (n, classes). embedding: (n, d).
    quality: 1 for right and 0 for wrong, or F1, (n,).
    """

    signals: dict[str, NDArray[np.float64]]
    answers: NDArray[np.float64]
    embedding: NDArray[np.float64]
    quality: NDArray[np.float64]


@dataclass(frozen=True)
class Pool:
    """The held-out samples of a model. companion: name of the other data set. shifted: (shift, strength) -> features."""

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
        """The number of samples."""
        return len(self.plain.quality)

    def window(self, rows: NDArray[np.int64], changed: NDArray[np.bool_], shift: tuple[str, int] | None) -> Features:
        """Return the features of a window's samples. rows, changed: see `protocol.Window`. shift: name and strength."""
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
    """Samples and their right answers, as a task takes them."""

    inputs: list[Any]
    sizes: NDArray[np.int32]
    targets: Any


def _held_out(path: Path, most: int) -> _Truth:
    """Return the samples of the validation and test split, or `most` of them, in their order."""
    parts = [manifest.load_split(path, part) for part in ("val", "test")]
    inputs: list[Any] = [sample for part in parts for sample in part.inputs]
    targets: list[Any] = [target for part in parts for target in part.targets]
    rows = np.sort(np.random.default_rng(0).permutation(len(inputs))[:most])
    kept = [targets[row] for row in rows]
    sizes = np.concatenate([part.sizes for part in parts])[rows]
    rewritten = [_rewritten(inputs[row]) for row in rows]
    return _Truth(rewritten, sizes, kept if isinstance(parts[0].targets, list) else np.array(kept))


def _rewritten(sample: Any) -> Any:
    """Return an image encoded as shifted images are, because otherwise the size of its file would betray every shift."""
    rng = np.random.default_rng(0)
    return sample if isinstance(sample, str) else shifts.shifted_image(sample, None, 0, rng)


def _foreign(companion: str, spec: ModelSpec, rows: int) -> _Truth:
    """Return `rows` samples of another data set, some repeatedly. Right is the class of the same name, -1 if there is none."""
    available = other_domain.read(companion, spec.task, rows)
    chosen = [available[row % len(available)] for row in range(rows)]
    labels = {name: number for number, name in enumerate(spec.labels)}
    targets: Any = np.array([labels.get(sample.label or "", -1) for sample in chosen])
    if spec.image is None:
        return _Truth([sample.text for sample in chosen], np.zeros((rows, 2), np.int32), targets)
    inputs = [_rewritten(sample.image) for sample in chosen]
    sizes = np.array([image.decode(encoded, 3).shape[1::-1] for encoded in inputs], np.int32)
    return _Truth(inputs, sizes, targets)


def pool(project: Path, name: str, most: int) -> Pool:
    """Return the held-out samples of a model in a project's folder, at most `most`."""
    opened = bundle.read(project / "models" / name / "bundle")
    spec = opened.manifest.spec
    task = tasks.find(spec.task)
    held_out = _held_out(project / "data" / name / "manifest.parquet", most)
    preprocess = task.preprocessor(spec, opened.folder)

    def features(truth: _Truth, *, labelled: bool = True) -> Features:
        """Return the features of samples. labelled: whether they have right answers; else the quality is 0."""
        prepared = preprocess(truth.inputs)
        outputs = sessions.run(opened.model, prepared)
        values = signals.signals(prepared, outputs, spec, truth.inputs, truth.sizes if spec.image else None)
        quality = task.quality(outputs, truth, spec) if labelled else np.zeros(len(truth.inputs))
        return Features(values, _answers(outputs, spec), outputs["embedding"].astype(float), quality)

    shifted = {}
    for shift in shifts.names(texts=spec.image is None):
        for strength in (1, 2, 3):
            rng = np.random.default_rng([3, strength])
            inputs = [shifts.shifted(sample, shift, strength, rng) for sample in held_out.inputs]
            shifted[shift, strength] = features(replace(held_out, inputs=inputs))
    dataset = settings.model(name, project / "params.yaml")[1].dataset
    companion = other_domain.COMPANIONS.get(dataset)
    if companion:
        foreign = _foreign(companion, spec, len(held_out.inputs))
        shifted[OTHER, 1] = features(foreign, labelled=spec.task != "detection")
    targets = None if isinstance(held_out.targets, list) else held_out.targets
    return Pool(name, dataset, companion, spec, task.quality_name, targets, features(held_out), shifted)


def _answers(outputs: dict[str, NDArray[Any]], spec: ModelSpec) -> NDArray[np.float64]:
    if spec.task != "detection":
        return outputs["probabilities"].astype(float)
    best = np.zeros((len(outputs["scores"]), len(spec.labels)))
    for label in range(len(spec.labels)):
        best[:, label] = np.where(outputs["classes"] == label, outputs["scores"], 0).max(1)
    return best
