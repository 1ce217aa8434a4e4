"""Samples without labels, which only a teacher answers: the images of a folder, or the texts of the tables in it.

The folder that `loopline label export` writes is such a folder: its requests are what the model is asked in practice. They are kept
in the manifest's columns, in a file that is named after its content: another set of samples has another name in params.yaml.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from loopline import settings, tasks
from loopline.data import manifest
from loopline.data.clean import Aside, SetAside, without_truth
from loopline.data.formats.common import IMAGES, Folder, broken, file_sample, list_folder, suffix
from loopline.data.ingest_report import counted
from loopline.data.manifest import Sample
from loopline.data.raw import RawSample
from loopline.errors import LooplineError
from loopline.tables import columns, table_reader
from loopline.tables.columns import Unreadable
from loopline.tasks.base import Content

FOLDER = Path("data/unlabelled")
TEXT = (*columns.TEXT, "sample")  # the last is the journal's


def collect(name: str, source: str) -> str:
    """Write the samples under `source` for the model `name`, and return what was kept and what was left out, in lines.

    Raises LooplineError if the model has no manifest yet or cannot have a teacher, or `source` has no usable sample.
    """
    _, model = settings.model(name)
    if not isinstance(model.train, settings.ClassifierFit):
        raise LooplineError(f"{name} cannot learn from unlabelled samples: only a classifier that is trained here can")
    splits = manifest.table(Path("data") / name / "manifest.parquet", ["id", "split"]).to_pydict()
    known = dict(zip(splits["id"], splits["split"], strict=True))
    samples, left_out = read(settings.located(source), tasks.find(model.task).content, known)
    names = "".join(sorted(sample.id for sample in samples))
    target = FOLDER / f"{name}-{hashlib.sha256(names.encode()).hexdigest()[:12]}.parquet"
    manifest.write(target, samples, task=model.task, labels=())
    lines = [f"{len(samples):,} samples in {target}", *(f"left out: {reason}" for reason in left_out)]
    return "\n".join(
        [*lines, f"Write `unlabelled: {target}` under train.teacher. `dvc add {target}` keeps it in the remote"]
    )


def read(root: Path, content: Content, known: Mapping[str, str]) -> tuple[list[Sample], list[str]]:
    """Return the samples under `root`, each content once, and what was left out, a line for each reason.

    known: split of each labelled sample by its id; none of them is returned. Raises LooplineError if nothing can be used, or a table
    is damaged.
    """
    aside, samples = Aside(), dict[str, Sample]()
    folder = list_folder(root)
    for path in folder.unreadable:
        aside.add("folder that cannot be opened", path)
    for path, reason in folder.left_out:
        aside.add(reason, path)
    for raw in _texts(folder) if content == "text" else _images(folder):
        try:
            sample = without_truth(raw, root.name, content)
        except SetAside as problem:
            aside.add(problem.args[0], raw.path, *problem.args[1:])
            continue
        if sample.id in known:
            aside.add(f"copy of a sample in the split {known[sample.id]}", raw.path)
        elif sample.id in samples:
            aside.add("copy of another sample", raw.path)
        else:
            samples[sample.id] = sample
    if not samples:
        need = f"tables with one of the columns {', '.join(TEXT)}" if content == "text" else "images"
        reasons = "; ".join(counted(aside)) or "it is empty"
        raise LooplineError(f"{root} has no sample to learn from ({reasons}): give a folder with {need}")
    return list(samples.values()), counted(aside)


def _images(folder: Folder) -> Iterator[RawSample]:
    for name in folder.files:
        if suffix(name) in IMAGES:
            yield file_sample(folder, name)
        else:
            yield broken(name, "file that is not an image")


def _texts(folder: Folder) -> Iterator[RawSample]:
    for name in folder.files:
        if suffix(name) in table_reader.KINDS:
            yield from _rows(folder, name)
        else:
            yield broken(name, "file that is not a table")


def _rows(folder: Folder, name: str) -> Iterator[RawSample]:
    def choose(names: Sequence[str]) -> Sequence[str] | None:
        column = columns.match(names, TEXT)
        return None if column is None else [column]

    try:
        file = (folder.root / name).open("rb")
    except OSError:
        yield broken(name, "file that cannot be opened")
        return
    with file:
        table = table_reader.read(file, str(folder.root / name), name, choose)
        if not table.chosen:
            yield broken(name, "table without a text column")
            return
        for row in table.rows:
            where = f"{name}:{row.number}"
            try:
                text = "" if row.problem else columns.cell(row.values[0])
            except Unreadable as error:
                yield broken(where, str(error))
            else:
                yield RawSample(where, None, text, None, None, None, problem=row.problem)
