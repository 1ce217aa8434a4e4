"""YOLO: a .txt file per image with lines `class x y width height` in fractions of the upright image; names in data.yaml.

The labels are in a folder `labels` parallel to `images`, or beside the images. A line with more numbers is an outline
(class x y x y ...) and is read as its bounding box. Pose points follow the box if data.yaml has `kpt_shape`. By convention,
an image without a label file has no objects, if its folder and its split have label files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from loopline.data.formats.common import (
    IMAGES,
    Folder,
    Format,
    broken,
    file_problem,
    file_sample,
    lines,
    names_classes,
    nfc,
    split_of_parts,
    upright_size,
)
from loopline.data.formats.finder import ImageFinder
from loopline.data.formats.yolo_lines import Columns, is_labels, parse
from loopline.data.formats.yolo_settings import YoloSettings, read_settings
from loopline.data.raw import RawSample
from loopline.errors import LooplineError

_CHECKED = 50  # label files read to recognise the format, since the first may be empty


def _labels_of(image: str) -> tuple[str, str]:
    """The paths, without suffix, of an image's possible label files: in `labels` for the innermost `images`, or beside it."""
    beside = PurePosixPath(image).with_suffix("").as_posix()
    parts = beside.split("/")
    for place in reversed(range(len(parts) - 1)):
        if parts[place].lower() == "images":
            return "/".join([*parts[:place], "labels", *parts[place + 1 :]]), beside
    return beside, beside


def _folded(stem: str) -> str:
    """The path in NFC, with the folder `labels` in lower case."""
    return nfc("/".join("labels" if part.lower() == "labels" else part for part in stem.split("/")))


def _label_files(folder: Folder) -> dict[str, list[str]]:
    """The .txt files by folded path without suffix, except lists of class names."""
    files: dict[str, list[str]] = {}
    for name in folder.suffixed({".txt"}):
        if not _names_classes(folder, name):
            files.setdefault(_folded(name[: -len(".txt")]), []).append(name)
    return files


def _names_classes(folder: Folder, name: str) -> bool:
    return names_classes(name) and not is_labels(_first_lines(folder, name))


def _first_lines(folder: Folder, name: str) -> list[str]:
    return lines(folder.start(name))


def _pairs(folder: Folder) -> dict[str, str | None]:
    """Image -> its label file, or None. Of label files that differ only in Unicode form, the image's own form wins.

    A label file whose name differs in case is used if no other image has it.
    """
    files = _label_files(folder)
    pairs: dict[str, str | None] = {}
    for image in folder.suffixed(IMAGES):
        candidates = [path for stem in _labels_of(image) for path in files.get(_folded(stem), [])]
        same = [path for path in candidates if _stem(path) == _stem(image)]
        pairs[image] = next(iter(same or candidates), None)
    used = set(pairs.values())
    free: dict[str, list[str]] = {}
    for stem, names in files.items():
        free.setdefault(stem.casefold(), []).extend(name for name in names if name not in used)
    for image in (image for image, labels in pairs.items() if labels is None):
        places = [_folded(stem).casefold() for stem in _labels_of(image)]
        pairs[image] = next((path for place in places for path in free.get(place, [])), None)
    return pairs


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


def _unlabelled(pairs: dict[str, str | None], splits: dict[str, str | None], orphans: list[str]) -> dict[str, str]:
    """Image without a label file -> why it does not count as an image without objects."""
    labelled = [image for image, labels in pairs.items() if labels]
    folders, of_labels = {PurePosixPath(image).parent for image in labelled}, {splits[image] for image in labelled}
    lost = {nfc(_stem(name)).casefold() for name in orphans}
    problems = {}
    for image in (image for image, labels in pairs.items() if not labels):
        if nfc(_stem(image)).casefold() in lost:
            problems[image] = "image whose labels are in another place"
        elif PurePosixPath(image).parent not in folders:
            problems[image] = "image in a folder without labels"
        elif splits[image] and splits[image] not in of_labels:
            problems[image] = "image in a split without labels"
    return problems


def _detect(folder: Folder) -> bool:
    labels = [name for name in _pairs(folder).values() if name]
    return any(is_labels(_first_lines(folder, name)) for name in labels[:_CHECKED])


def _read(folder: Folder) -> Iterator[RawSample]:
    files = [name for name in folder.files if _names_classes(folder, name)]
    settings = read_settings(folder, files)
    published, lost = settings.splits(folder, ImageFinder(folder))
    pairs = _pairs(folder)
    columns = Columns(settings.points)
    for labels in pairs.values():
        if labels:
            columns.look_at(folder, labels)
    columns.check(folder)
    used = set(pairs.values())
    unused = (name for names in _label_files(folder).values() for name in names if name not in used)
    orphans = [name for name in unused if is_labels(_first_lines(folder, name))]
    splits = {image: split_of_parts(image) or published.get(image) for image in pairs}
    unlabelled = _unlabelled(pairs, splits, orphans)
    for image, labels in pairs.items():
        if image in unlabelled:
            yield broken(image, unlabelled[image], split=splits[image])
            continue
        sample = file_sample(folder, image, boxes=(), split=splits[image])
        yield _labelled(sample, folder, labels, settings, columns) if labels and sample.image else sample
    yield from (broken(name, "labels without an image") for name in orphans)
    yield from lost


def _labelled(sample: RawSample, folder: Folder, labels: str, settings: YoloSettings, columns: Columns) -> RawSample:
    """The sample with the boxes of its label file."""
    # Cleaning sets a broken image aside with its boxes, so any size will do.
    width, height = upright_size(sample.image or b"") or (1, 1)
    try:
        text = lines(folder.read(labels))
    except LooplineError as error:
        return replace(broken(sample.path, file_problem(error), split=sample.split), detail=labels)
    boxes = (
        parse(line, f"{labels}:{number}", (width, height), settings.names, columns)
        for number, line in enumerate(text, 1)
        if line.strip()
    )
    return replace(sample, boxes=tuple(boxes))


YOLO = Format(
    name="YOLO",
    content="image",
    truth="boxes",
    layout="YOLO: images/1.jpg with labels/1.txt (or both side by side) and data.yaml with names; "
    "optionally train/, val/, test/ above or below",
    detect=_detect,
    read=_read,
)
