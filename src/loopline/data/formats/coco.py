"""COCO: a JSON file with `images`, `annotations` and `categories`; boxes are [x, y, width, height] in pixels.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from loopline.data.formats.common import (
    Folder,
    Format,
    broken,
    file_sample,
    json_text,
    load_json,
    split_of_file,
    split_of_parts,
)
from loopline.data.formats.finder import ImageFinder
from loopline.data.raw import RawBox, RawSample
from loopline.errors import LooplineError
from loopline.tasks.labelstudio_json import number

_KEYS = ("images", "annotations", "categories")
# COCO's own release has these beside instances_val2017.json; they repeat its images with fewer classes.
_REPEATED = re.compile(r"(?:person_keypoints|stuff|panoptic)(?=[_.])")


def _files(folder: Folder) -> list[str]:
    """The JSON files with the three keys, which may be anywhere in them, so they are searched as text."""
    names = [name for name in folder.suffixed({".json"}) if _has_keys(folder, name)]
    unprefixed = {PurePosixPath(name).with_name(_REPEATED.sub("instances", PurePosixPath(name).name)) for name in names}
    originals = unprefixed & {PurePosixPath(name) for name in names}
    return [
        name
        for name in names
        if not _REPEATED.match(PurePosixPath(name).name)
        or PurePosixPath(name).with_name(_REPEATED.sub("instances", PurePosixPath(name).name)) not in originals
    ]


def _has_keys(folder: Folder, name: str) -> bool:
    if not json_text(folder.start(name)).startswith("{"):
        return False
    text = json_text((folder.root / name).read_bytes())
    return all(f'"{key}"' in text for key in _KEYS)


def _read(folder: Folder) -> Iterator[RawSample]:
    finder = ImageFinder(folder)
    for file in _files(folder):
        yield from _read_file(folder, file, finder)
    yield from finder.unused()


def _read_file(folder: Folder, file: str, finder: ImageFinder) -> Iterator[RawSample]:
    content = _load(folder, file)
    names = _categories(folder, file, content["categories"])
    split = split_of_file(file)
    images: list[dict[str, Any]] = []
    for place, entry in enumerate(content["images"]):
        if isinstance(entry, dict) and _is_id(entry.get("id")) and isinstance(entry.get("file_name"), str):
            images.append(entry)
        else:
            yield broken(f"{file}:images[{place}]", "image entry without an id or file_name", split=split)
    ids = Counter(image["id"] for image in images)
    boxes: dict[Any, list[RawBox]] = {image: [] for image in ids}
    texts = Counter(map(str, ids))
    by_text = {str(image): image for image in ids if texts[str(image)] == 1}  # some tools write an id as 8 and as "8"
    for place, annotation in enumerate(content["annotations"]):
        where = f"{file}:annotations[{place}]"
        if not isinstance(annotation, dict) or not _is_id(annotation.get("image_id")):
            yield broken(where, "annotation without image_id", split=split)
            continue
        image_id = annotation["image_id"]
        image_boxes = boxes.get(image_id if image_id in boxes else by_text.get(str(image_id)))
        if image_boxes is None:
            yield broken(where, "annotation without an image", split=split)
        else:
            image_boxes.append(_box(annotation, names, where))
    for image in images:
        name = image["file_name"]
        if ids[image["id"]] > 1:
            yield broken(f"{file}:{name}", "image whose id is not unique", split=split)
        elif (path := finder.find(name, file, split=split)) is None:
            yield broken(f"{file}:{name}", finder.missing, split=split)
        else:
            sample = file_sample(folder, path, boxes=tuple(boxes[image["id"]]), split=split or split_of_parts(path))
            yield sample if sample.problem else replace(sample, size=_size(image))


def _load(folder: Folder, file: str) -> dict[str, list[Any]]:
    content = load_json(folder, file)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in _KEYS):
        raise LooplineError(
            f"{folder.root / file} is not COCO JSON: images, annotations and categories must be lists of objects"
        )
    return content


def _categories(folder: Folder, file: str, entries: list[Any]) -> dict[Any, str]:
    """Category id -> class name. Raises LooplineError for an entry without id or name, and for an id with two names."""
    names: dict[Any, str] = {}
    for place, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not _is_id(entry.get("id")) or not isinstance(name, str | int | float):
            raise LooplineError(f"{folder.root / file}: categories[{place}] needs id and name")
        if names.setdefault(entry["id"], str(name)) != str(name):
            raise LooplineError(
                f"{folder.root / file}: category {entry['id']} is both {names[entry['id']]!r} and {name!r}"
            )
    return names


def _is_id(value: object) -> bool:
    return isinstance(value, str) or number(value) is not None


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    """(width, height) if the entry states both as numbers, else None; some tools write 0 or text."""
    width, height = number(image.get("width")), number(image.get("height"))
    return (round(width), round(height)) if width and height else None


def _box(annotation: dict[str, Any], names: dict[Any, str], where: str) -> RawBox:
    category, bbox = annotation.get("category_id"), annotation.get("bbox")
    label = names.get(category) if _is_id(category) else None
    corners = [number(value) for value in bbox] if isinstance(bbox, list) else []
    if len(corners) != 4 or None in corners:
        return RawBox(label or "", 0, 0, 0, 0, problem="annotation without a box", detail=f"{where}: bbox {bbox!r:.60}")
    x, y, width, height = (corner for corner in corners if corner is not None)
    problem, detail = None, ""
    if label is None:
        problem, detail = "class number without a name", f"{where}: category_id {category!r:.60}"
    if annotation.get("iscrowd"):
        problem = "box around a crowd"
    return RawBox(label or "", x, y, x + width, y + height, problem=problem, detail=detail)


COCO = Format(
    name="COCO",
    content="image",
    truth="boxes",
    layout="COCO: a JSON with images, annotations and categories (train.json, instances_val2017.json, ...), "
    "the images anywhere in the folder",
    detect=lambda folder: bool(_files(folder)),
    read=_read,
)
