"""The teacher of a training: `train.teacher` in params.yaml, the bundle of another model there."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from loopline import settings, tasks
from loopline.data import manifest
from loopline.data.manifest import Split
from loopline.errors import LooplineError
from loopline.lib import sessions
from loopline.release import bundle
from loopline.settings import Adopt
from loopline.stages import stage_files
from loopline.tasks.teacher import ClassifierTeacher, Teacher
from loopline.training.distillation import UNLABELLED, Taught


@dataclass(frozen=True)
class Lesson:
    """What a training learns from.

    train: training split, with the unlabelled samples. more: further arguments of the task's trainer; empty without a teacher.
    teacher: for the report.
    """

    train: Split
    more: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)


def of(name: str, model: settings.ModelSettings, train: Split) -> Lesson:
    """Return the lesson of model `name`. Raises LooplineError if its teacher or the unlabelled samples cannot be used."""
    teacher: Teacher | None = getattr(model.train, "teacher", None)
    if not teacher:
        return Lesson(train)
    if teacher.model == name:
        raise LooplineError(f"{name}: train.teacher names the model itself: give another model of params.yaml")
    read = _bundle(teacher)
    spec = read.manifest.spec
    if spec.task != model.task or sorted(spec.labels) != sorted(train.labels):
        raise LooplineError(
            f"{name}: the teacher {teacher.model} is for {spec.task} with the classes {', '.join(spec.labels[:10])}, the data are for "
            f"{model.task} with {', '.join(train.labels[:10])}"
        )
    _not_seen(name, teacher)
    record: dict[str, Any] = {"model": teacher.model, "version": read.version}
    if not isinstance(teacher, ClassifierTeacher):
        return Lesson(train, {"taught": _network(teacher, read)}, record)
    if teacher.unlabelled:
        train, record["unlabelled"] = _extended(name, model, train, teacher.unlabelled)
    inputs = tasks.find(model.task).preprocessor(spec, read.folder)(train.inputs)
    order = [spec.labels.index(label) for label in train.labels]
    probabilities = np.ascontiguousarray(sessions.run(read.model, inputs)["probabilities"][:, order], np.float32)
    return Lesson(train, {"taught": Taught(probabilities, teacher.temperature, teacher.weight)}, record)


def train_without(
    name: str, trainer: Any, train: Split, val: Split, model: settings.ModelSettings, lesson: Lesson, *, seed: int
) -> None:
    """Train and export the same model without its teacher, to `train/untaught/`: `evaluate` compares the two. Else do nothing.

    A retraining that starts from the champion starts from weights that were taught, so that there is nothing to compare.
    """
    folder = stage_files.stage(name, "train") / stage_files.UNTAUGHT
    shutil.rmtree(folder, ignore_errors=True)
    if not lesson.teacher or str(getattr(model.train, "pretrained", "")).startswith(stage_files.START):
        return
    alone = model.model_copy(update={"train": model.train.model_copy(update={"teacher": None})})
    work = stage_files.scratch("work", f"{name}-{stage_files.UNTAUGHT}")
    trainer.train(train, val, alone, seed=seed, out=folder, work=work, log=lambda *_: None)
    trainer.export(folder, train, val, alone, out=folder / "model.onnx")
    stage_files.write_json(folder / "teacher.json", lesson.teacher)


def _bundle(teacher: Teacher) -> bundle.Bundle:
    """Return the teacher's bundle. Raises LooplineError if it is missing, of another version, or made with other settings."""
    everything, model = settings.model(teacher.model)
    folder = settings.located(f"models/{teacher.model}/bundle")  # a working copy of a retraining may lack it
    if not folder.exists():
        raise LooplineError(f"train.teacher: there is no {folder}: run dvc repro package@{teacher.model} first")
    read = bundle.read(folder)
    if not read.version.startswith(teacher.version):
        raise LooplineError(
            f"train.teacher: {folder} has the version {read.version[:12]}, but params.yaml says {teacher.version}. If you mean "
            "the new one, write its version there"
        )
    if read.manifest.lineage.parameters != stage_files.parameters(everything.seed, model):
        raise LooplineError(
            f"train.teacher: {folder} was made with other settings than those of {teacher.model} in params.yaml: run dvc repro "
            f"package@{teacher.model}"
        )
    return read


def _network(teacher: Teacher, read: bundle.Bundle) -> Path:
    """Return the train folder of the teacher's bundle. Raises LooplineError if the model was trained again since."""
    weights, shipped = (
        settings.located(f"models/{teacher.model}/{file}")
        for file in ("train/model.safetensors", "quantize/model.onnx")
    )
    if not (weights.exists() and shipped.exists() and shipped.read_bytes() == read.model.read_bytes()):
        raise LooplineError(
            f"train.teacher: {weights.parent} is missing or is not what {read.folder} was made of: run dvc repro "
            f"package@{teacher.model}, or dvc checkout"
        )
    return weights.parent


def _not_seen(name: str, teacher: Teacher) -> None:
    """Raise LooplineError if the teacher learnt from samples of the test split of `name`, or if nobody knows from what it learnt.

    What the teacher's own teacher learnt, and the samples that it answered, count too. Pretrained weights are not looked into.
    """
    test = _ids(stage_files.manifest(name), "test")
    if seen := len(test & _learnt(name, teacher)):
        raise LooplineError(
            f"{name}: the teacher {teacher.model} learnt from {seen} of the {len(test)} samples of the test split: give both "
            "models the same dataset and split"
        )


def _learnt(name: str, teacher: Teacher) -> set[str]:
    """Return the ids of the samples from which the teacher of `name` learnt."""
    _, model = settings.model(teacher.model)
    path = settings.located(str(stage_files.manifest(teacher.model)))
    known = path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == _bundle(teacher).manifest.lineage.data
    if isinstance(model.train, Adopt) or not known:
        raise LooplineError(
            f"{name}: nobody knows from what the teacher {teacher.model} learnt, so it may have seen the test split: train it here, "
            f"and keep {path} as it was"
        )
    ids = _ids(path, "train", "val")
    own: Teacher | None = getattr(model.train, "teacher", None)
    if isinstance(own, ClassifierTeacher) and own.unlabelled:
        ids |= _ids(settings.located(own.unlabelled))
    return ids | _learnt(teacher.model, own) if own else ids


def _ids(path: Path, *splits: str) -> set[str]:
    """Return the ids of the samples in these splits of a manifest; in all if none is named."""
    table = manifest.table(path, ["id", "split"]).to_pydict()
    return {each for each, split in zip(table["id"], table["split"], strict=True) if split in splits or not splits}


def _extended(name: str, model: settings.ModelSettings, train: Split, place: str) -> tuple[Split, int]:
    """Return `train` and after it the samples of `place` with the class UNLABELLED, and their number.

    The data may have grown since the samples were collected, so what is now in a split is left out.
    """
    path, content = settings.located(place), tasks.find(model.task).content
    hint = f"make it with loopline data unlabelled {name} FOLDER"
    if not path.is_file():
        raise LooplineError(f"{name}: train.teacher.unlabelled: there is no file {path}: {hint}")
    try:
        table, made_for = manifest.table(path, ["id", content]).to_pydict(), manifest.task(path)
    except LooplineError as error:
        raise LooplineError(f"{name}: train.teacher.unlabelled: {path} is not such a file: {hint}") from error
    if tasks.find(made_for).content != content:
        raise LooplineError(f"{name}: {path} was made for the task {made_for}: {model.task} needs {content}s. {hint}")
    known = _ids(stage_files.manifest(name))
    rows = [row for row in zip(table["id"], table[content], strict=True) if row[0] not in known]
    inputs: list[Any] = [*train.inputs, *(item for _, item in rows)]
    extended = replace(
        train,
        ids=[*train.ids, *(identity for identity, _ in rows)],
        inputs=inputs,
        targets=np.concatenate([train.targets, np.full(len(rows), UNLABELLED, np.int64)]),
        sizes=np.concatenate([train.sizes, np.zeros((len(rows), 2), np.int32)]),
    )
    return extended, len(rows)
