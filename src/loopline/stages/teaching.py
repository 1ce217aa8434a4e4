"""What a teacher answers for the samples of a training: `train.teacher` in params.yaml.

The teacher is the bundle of another model of params.yaml. Its answers are those of its server: same preprocessing, same graph.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from loopline import settings, tasks
from loopline.data import manifest
from loopline.data.manifest import Split
from loopline.errors import LooplineError
from loopline.lib import sessions
from loopline.release import bundle
from loopline.settings import Adopt, ClassifierFit, Teacher
from loopline.stages import stage_files
from loopline.training import loop


def of(name: str, model: settings.ModelSettings, train: Split) -> loop.Taught | None:
    """Return the answers of the teacher of model `name` for each sample of `train`; None if it has none. Raises LooplineError."""
    if not isinstance(model.train, ClassifierFit) or not (teacher := model.train.teacher):
        return None
    if getattr(model.train, "architecture", None) == "ngrams":
        raise LooplineError(
            f"{name}: train.teacher gained nothing for n-grams in trials (docs/pretrained.md): choose an encoder"
        )
    read = _bundle(teacher)
    spec = read.manifest.spec
    if spec.task != model.task or sorted(spec.labels) != sorted(train.labels):
        raise LooplineError(
            f"{name}: the teacher {teacher.model} is for {spec.task} with the classes {', '.join(spec.labels[:10])}, the data are for "
            f"{model.task} with {', '.join(train.labels[:10])}"
        )
    _not_seen(name, teacher, read)
    inputs = tasks.find(model.task).preprocessor(spec, read.folder)(train.inputs)
    order = [spec.labels.index(label) for label in train.labels]
    probabilities = sessions.run(read.model, inputs)["probabilities"][:, order]
    return loop.Taught(np.ascontiguousarray(probabilities, np.float32), teacher.temperature, teacher.weight)


def without(model: settings.ModelSettings) -> settings.ModelSettings:
    """Return the settings of the same training without a teacher."""
    return model.model_copy(update={"train": model.train.model_copy(update={"teacher": None})})


def _bundle(teacher: Teacher) -> bundle.Bundle:
    folder = Path("models") / teacher.model / "bundle"
    if not folder.exists():
        raise LooplineError(f"train.teacher: there is no {folder}: run dvc repro package@{teacher.model} first")
    read = bundle.read(folder)
    if not read.version.startswith(teacher.version):
        raise LooplineError(
            f"train.teacher: {folder} has the version {read.version[:12]}, but params.yaml says {teacher.version}. If you mean "
            "the new one, write its version there"
        )
    return read


def _not_seen(name: str, teacher: Teacher, read: bundle.Bundle) -> None:
    """Raise LooplineError if the teacher learnt from samples of the test split of `name`, or if nobody knows from what it learnt."""
    _, model = settings.model(teacher.model)
    path = stage_files.manifest(teacher.model)
    known = path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == read.manifest.lineage.data
    if isinstance(model.train, Adopt) or not known:
        raise LooplineError(
            f"{name}: nobody knows from what the teacher {teacher.model} learnt, so it may have seen the test split: train it here, "
            f"and keep {path} as it was"
        )
    test = set(manifest.load_split(stage_files.manifest(name), "test").ids)
    seen = [each for split in ("train", "val") for each in manifest.load_split(path, split).ids if each in test]
    if seen:
        raise LooplineError(
            f"{name}: the teacher {teacher.model} learnt from {len(seen)} of the {len(test)} samples of the test split: give both "
            "models the same dataset and split"
        )
