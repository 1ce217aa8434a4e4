"""COCO: a JSON with `images`, `annotations` and `categories`; boxes are [x, y, width, height] in pixels.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from loopline.data.formats.common import IMAGES, Folder, Format, broken, file_sample, split_of_file
from loopline.data.raw import RawBox, RawSample
from loopline.errors import LooplineError

_KEYS = ("images", "annotations", "categories")


def _files(folder: Folder) -> list[str]:
    """The JSON files that speak of boxes: the three keys can stand anywhere in them, so they are looked for as text."""
    found = []
    for name in folder.suffixed({".json"}):
        data = folder.read(name)
        if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and all(f'"{key}"'.encode() in data for key in _KEYS):
            found.append(name)
    # COCO's own release says the same again, without boxes of other classes, in person_keypoints_*.json.
    return [name for name in found if PurePosixPath(name).name.startswith("instances")] or found


def _read(folder: Folder) -> Iterator[RawSample]:
    index: dict[str, list[str]] = {}
    for image in folder.suffixed(IMAGES):
        index.setdefault(PurePosixPath(image).name.casefold(), []).append(image)
    used = set()
    for file in _files(folder):
        content = _load(folder, file)
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        boxes: dict[Any, list[RawBox]] = {image["id"]: [] for image in content["images"]}
        for number, annotation in enumerate(content["annotations"]):
            if annotation.get("image_id") in boxes:
                boxes[annotation["image_id"]].append(_box(annotation, names))
            else:
                yield broken(f"{file}:annotations[{number}]", "annotation without an image")
        split = split_of_file(file)
        for image in content["images"]:
            name = str(image["file_name"])
            found = _find(name, file, split, index)
            if found is None:
                yield broken(f"{file}:{name}", "image file not found", split=split)
                continue
            used.add(found)
            size = (int(image.get("width") or 0), int(image.get("height") or 0))
            stated = size if all(size) else None
            yield file_sample(folder, found, boxes=tuple(boxes[image["id"]]), split=split, size=stated)
    for image in folder.suffixed(IMAGES):
        if image not in used:
            yield broken(image, "image without annotation")


def _load(folder: Folder, file: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(folder.read(file).decode("utf-8-sig"))
        for key, wanted in zip(_KEYS, (("id", "file_name"), (), ("id", "name")), strict=True):
            if any(field not in entry for entry in content[key] for field in wanted):
                raise LooplineError(f"{folder.root / file}: each of `{key}` needs {' and '.join(wanted)}")
    except (ValueError, KeyError, TypeError) as error:
        raise LooplineError(f"{folder.root / file} is not COCO JSON: {error!r}") from error
    return content


def _find(name: str, file: str, split: str | None, index: dict[str, list[str]]) -> str | None:
    """The image's path in the folder: the one with the most of the end of `file_name`, else the JSON's neighbour, else
    one whose path names the JSON's split. None where there is none, or where several are left."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    found = index.get(parts[-1].casefold(), []) if parts else []
    for length in range(len(parts), 1, -1):
        tail = "/" + "/".join(parts[-length:])
        if longest := [path for path in found if ("/" + path).endswith(tail)]:
            found = longest
            break
    if len(found) > 1:
        found = [path for path in found if PurePosixPath(path).parent == PurePosixPath(file).parent] or found
    if len(found) > 1:
        found = [path for path in found if split_of_file(PurePosixPath(path).parent.as_posix() + "/") == split]
    return found[0] if len(found) == 1 else None


def _box(annotation: dict[str, Any], names: dict[Any, str]) -> RawBox:
    label = names.get(annotation.get("category_id"))
    try:
        x, y, width, height = map(float, annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        return RawBox(label or "", 0, 0, 0, 0, problem="annotation without a box")
    problem = "class number without a name" if label is None else None
    if annotation.get("iscrowd"):
        problem = "box around a crowd"
    return RawBox(label or "", x, y, x + width, y + height, problem=problem)


COCO = Format(
    name="COCO",
    tasks=frozenset({"detection"}),
    layout="COCO: a JSON with images, annotations and categories (train.json, instances_val2017.json, ...), "
    "the images anywhere in the folder",
    detect=lambda folder: bool(_files(folder)),
    read=_read,
)
