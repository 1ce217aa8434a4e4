"""Recognise the format of a folder and read it; if none fits, list the files seen and the accepted layouts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from loopline import tasks
from loopline.data.formats import text_tables
from loopline.data.formats.coco import COCO
from loopline.data.formats.common import Folder, Format, broken, list_folder, split_of_folder, suffix
from loopline.data.formats.cvat import CVAT, CVAT_TAGS
from loopline.data.formats.folders import IMAGE_FOLDERS, ONE_IMAGE_FOLDER, ONE_TEXT_FOLDER, TEXT_FOLDERS
from loopline.data.formats.idx import IDX
from loopline.data.formats.labelstudio import LABEL_STUDIO
from loopline.data.formats.lines import CLASS_FILES, FASTTEXT, PARALLEL, TABBED
from loopline.data.formats.text_tables import TABLES
from loopline.data.formats.voc import VOC
from loopline.data.formats.yolo import YOLO
from loopline.data.raw import RawSample
from loopline.errors import LooplineError
from loopline.tables.table_reader import KINDS
from loopline.tasks.base import Task
from loopline.tasks.plugins import BUILT_IN

IMAGE_FORMATS = (IMAGE_FOLDERS, IDX, YOLO, COCO, VOC, CVAT, CVAT_TAGS, *LABEL_STUDIO)
FORMATS = (*IMAGE_FORMATS, TABLES, FASTTEXT, CLASS_FILES, TABBED, PARALLEL, TEXT_FOLDERS)
ARCHIVES = {".zip", ".gz", ".tgz", ".tar", ".bz2", ".xz", ".7z", ".rar"}
# A batch may hold a single class. Any folder looks like one, so these are tried last.
LAST_RESORT = (ONE_IMAGE_FOLDER, ONE_TEXT_FOLDER)


def recognise(folder: Path, task: str) -> Format:
    """The format of the dataset in `folder`. Raises LooplineError if no format, or more than one, fits the task."""
    return _recognise(folder, list_folder(folder), tasks.find(task))[0]


def read(folder: Path, task: str, *, unused: bool = False, group: str | None = None) -> Iterator[RawSample]:
    """Yield the samples of a dataset in any format, with paths relative to `folder`. Raises LooplineError.

    folder: a folder or a single file. Then follow, as broken samples, the files and folders that cannot be opened.
    unused: whether all other files follow too, marked `unused`. group: the table column that names the samples' groups.
    """
    outer = list_folder(folder)
    form, inner = _recognise(folder, outer, tasks.find(task))
    inner = replace(inner, opened=set(), group=group)
    prefix = inner.root.relative_to(outer.root).as_posix()
    prefix = "" if prefix == "." else f"{prefix}/"
    rest = dict.fromkeys(inner.files)
    for sample in form.read(inner):
        for name in (sample.path, sample.path.rpartition(":")[0]):
            rest.pop(name, None)
        yield replace(sample, path=prefix + sample.path) if prefix else sample
    yield from (broken(f"{name}/", "folder that cannot be opened") for name in outer.unreadable)
    for name in (name for name in rest if name not in inner.opened):
        if not os.access(inner.root / name, os.R_OK, effective_ids=True):
            yield broken(prefix + name, "file that cannot be opened")
        elif unused:
            yield replace(broken(prefix + name, f"not used in the format {form.name}"), unused=True)
    if unused:
        yield from (replace(broken(name, reason), unused=True) for name, reason in outer.left_out)


def _recognise(folder: Path, listed: Folder, task: Task) -> tuple[Format, Folder]:
    inners = list(_inwards(listed)) if folder.is_dir() else [listed]
    for inner in inners:
        if form := _only(inner, task, FORMATS):
            return form, inner
    others = {form.name: form for inner in inners for form in FORMATS if not form.fits(task) and form.detect(inner)}
    for inner in () if others else inners:
        if form := _only(inner, task, LAST_RESORT):
            return form, inner
    advice = [advice for inner in inners for form in FORMATS if form.fits(task) and (advice := form.advise(inner))]
    raise LooplineError(_unknown(folder, inners[0], task, list(others.values()), advice[:1]))


def _inwards(folder: Folder) -> Iterator[Folder]:
    """Yield the folder and, while it holds only one other folder, that folder: archives often add such a layer."""
    yield folder
    above = {PurePosixPath(name).parts[0] for name in folder.files}
    only = next(iter(above), "")
    if len(above) == 1 and only not in folder.files and split_of_folder(only) is None:
        yield from _inwards(Folder(folder.root / only, tuple(name[len(only) + 1 :] for name in folder.files)))


def _only(folder: Folder, task: Task, formats: tuple[Format, ...]) -> Format | None:
    matches = [form for form in formats if form.fits(task) and form.detect(folder)]
    if len(matches) > 1:
        raise LooplineError(
            f"{folder.root} looks like more than one format: {', '.join(form.name for form in matches)}.\n"
            "Keep the files of one format, or give a folder that holds only those."
        )
    return matches[0] if matches else None


def _unknown(folder: Path, listed: Folder, task: Task, others: list[Format], advice: list[str]) -> str:
    kinds = Counter(suffix(name) or "without suffix" for name in listed.files)
    seen = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0])))
    few = ", ".join(listed.files[:3]) + (", ..." if len(listed.files) > 3 else "")
    text = [f"{folder} has no known format for the task {task.name}."]
    text.append(f"Seen: {seen} ({few})" if listed.files else "Seen: no files, apart from hidden files and documents")
    text += [f"Folders that cannot be opened: {', '.join(listed.unreadable[:3])}"] if listed.unreadable else []
    text += advice
    if packed := [name for name in listed.files if suffix(name) in ARCHIVES]:
        text.append(f"Archives are not read: unpack {packed[0]} and give the folder.")
    tables = listed.suffixed({*KINDS} - {".txt"}) if task.content == "text" else ()
    text += [text_tables.describe(listed, name) for name in tables[:3]]
    for form in others:
        names = ", ".join(name for name in BUILT_IN if form.fits(tasks.find(name)))
        text.append(f"It looks like {form.name}, which is for {names}: correct `task` in params.yaml.")
    text += ["Accepted:", *(f"  - {form.layout}" for form in FORMATS if form.fits(task))]
    return "\n".join([*text, "See docs/bring-your-own-data.md."])
