"""YOLO: a .txt a image with `class x y width height` a line, in shares of the upright image; names in data.yaml.

The labels stand in a folder `labels` in place of `images`, or beside the images. A line with more numbers is an outline
(class x y x y ...) and becomes the box around it. An image without a label file has no object, as is the custom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from loopline.data.formats.common import (
    IMAGES,
    Folder,
    Format,
    broken,
    class_names,
    file_sample,
    head,
    lines,
    split_of_parts,
    suffix,
    upright_size,
)
from loopline.data.raw import RawBox, RawSample
from loopline.errors import LooplineError

_NAMES = ("classes.txt", "obj.names", "labels.txt")
_SETTINGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_OUTLINE = 7  # numbers of the smallest outline: a class and three points


def _labels_of(image: str) -> tuple[str, str]:
    """Where the labels of an image may stand: under `labels` instead of the innermost `images`, or beside it."""
    beside = PurePosixPath(image).with_suffix("").as_posix()
    parts = beside.split("/")
    for place in reversed(range(len(parts) - 1)):
        if parts[place].lower() == "images":
            return "/".join([*parts[:place], "labels", *parts[place + 1 :]]), beside
    return beside, beside


def _label_files(folder: Folder) -> dict[str, str]:
    """The .txt files by their path without suffix; the folder `labels` in lower case."""
    files = [name for name in folder.suffixed({".txt"}) if PurePosixPath(name).name not in _NAMES]
    return {_folded(name[: -len(".txt")]): name for name in files}


def _folded(stem: str) -> str:
    return "/".join("labels" if part.lower() == "labels" else part for part in stem.split("/"))


def _pairs(folder: Folder) -> dict[str, str | None]:
    """Image -> its label file, or None."""
    files = _label_files(folder)
    pairs = {}
    for image in folder.suffixed(IMAGES):
        under, beside = _labels_of(image)
        pairs[image] = files.get(_folded(under), files.get(_folded(beside)))
    return pairs


def _detect(folder: Folder) -> bool:
    found = [name for name in _pairs(folder).values() if name]
    return any(_is_labels(head(folder.root / name)) for name in found[:50])  # the first may be empty


def _is_labels(text: list[str]) -> bool:
    words = next((line.split() for line in text if line.strip()), [])
    try:
        return len([float(word) for word in words]) >= 5
    except ValueError:
        return False


def _settings(folder: Folder) -> dict[str, Any]:
    import yaml

    for name in _SETTINGS:
        if name in folder.files:
            try:
                loaded = yaml.safe_load(folder.read(name))
            except yaml.YAMLError as error:
                raise LooplineError(f"{folder.root / name} is not valid YAML: {error}") from error
            return loaded if isinstance(loaded, dict) else {}
    return {}


def _class_names(folder: Folder, settings: dict[str, Any]) -> dict[int, str]:
    names = settings.get("names") or class_names(folder, _NAMES) or []
    try:
        numbered = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(number): str(name) for number, name in numbered}
    except (TypeError, ValueError) as error:
        raise LooplineError(f"{folder.root}: `names` in data.yaml must be a list, or numbers with names") from error


def _splits(folder: Folder, settings: dict[str, Any]) -> dict[str, str]:
    """Image -> split, from data.yaml's train, val and test: a folder, a .txt that lists images, or a list of those.

    What two of them claim counts as unpublished (small sets are often given as both train and val).
    """
    claims: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        entries = settings.get(split) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            for image in _listed(folder, _inside(str(entry), settings)):
                claims.setdefault(image, set()).add(split)
    return {image: found.pop() for image, found in claims.items() if len(found) == 1}


def _inside(entry: str, settings: dict[str, Any]) -> str:
    """The part of a path that lies in the dataset: exporters write `../train/images` and paths of their own machine."""
    base = str(settings.get("path") or "").rstrip("/")
    return "/".join(part for part in entry.removeprefix(base).split("/") if part not in ("", ".", ".."))


def _listed(folder: Folder, entry: str) -> Iterator[str]:
    if suffix(entry) == ".txt" and entry in folder.files:
        for line in lines(folder.read(entry)):
            yield _inside(line.strip(), {})
    else:
        yield from (name for name in folder.files if name.startswith(entry + "/"))


def _read(folder: Folder) -> Iterator[RawSample]:
    settings = _settings(folder)
    names = _class_names(folder, settings)
    published = _splits(folder, settings)
    pairs = _pairs(folder)
    for image, labels in pairs.items():
        sample = file_sample(folder, image, boxes=(), split=split_of_parts(image) or published.get(image))
        if labels and sample.image:
            # A broken image has no size: cleaning sets it aside with its boxes.
            width, height = upright_size(sample.image) or (1, 1)
            text = lines(folder.read(labels))
            sample = replace(sample, boxes=tuple(_box(line, width, height, names) for line in text if line.strip()))
        yield sample
    if alone := set(_label_files(folder).values()) - set(pairs.values()):
        for name in folder.files:
            if name in alone and _is_labels(head(folder.root / name)):
                yield broken(name, "labels without an image")


def _box(line: str, width: int, height: int, names: dict[int, str]) -> RawBox:
    words = line.split()
    try:
        number, *values = (float(word) for word in words)
        index = int(number)
    except (ValueError, OverflowError):
        return RawBox("", 0, 0, 0, 0, problem="broken line of labels")
    if len(values) == 4:
        x, y, across, down = values
        corners = (x - across / 2, y - down / 2, x + across / 2, y + down / 2)
    elif len(words) >= _OUTLINE and len(values) % 2 == 0:
        corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    else:
        return RawBox("", 0, 0, 0, 0, problem="broken line of labels")
    problem = None
    if names and index not in names:
        problem = "class number without a name"
    elif any(math.isfinite(value) and abs(value) > 2 for value in corners):
        problem = "coordinates that are no shares of the image"
    x1, y1, x2, y2 = corners
    return RawBox(names.get(index, str(index)), x1 * width, y1 * height, x2 * width, y2 * height, problem=problem)


YOLO = Format(
    name="YOLO",
    tasks=frozenset({"detection"}),
    layout="YOLO: images/1.jpg with labels/1.txt (or both side by side) and data.yaml with names; "
    "optionally train/, val/, test/ above or below",
    detect=_detect,
    read=_read,
)
