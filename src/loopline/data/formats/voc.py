"""Pascal VOC: an XML an image with `object/name` and `object/bndbox`; published splits in ImageSets/Main.

Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/index.html. Corners are taken as edges as they stand, as
today's labelling tools write them, whole or with decimals. VOC's own count pixels from 1: a pixel off at most.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from xml.etree import ElementTree

from loopline.data.formats.common import IMAGES, Folder, Format, broken, file_sample, lines, split_of_parts
from loopline.data.raw import RawBox, RawSample

_LISTS = {"train": "train", "val": "val", "test": "test", "trainval": "train"}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _detect(folder: Folder) -> bool:
    return any(b"<annotation" in folder.read(name)[:4096] for name in folder.suffixed({".xml"})[:50])


def _published(folder: Folder) -> dict[tuple[str, str], str]:
    """(folder that holds ImageSets, image's name without suffix) -> split. train and val go before trainval."""
    splits: dict[tuple[str, str], str] = {}
    for listing, split in _LISTS.items():
        for name in folder.files:
            found = re.fullmatch(r"(.*/)?ImageSets/Main/" + listing + r"\.txt", name, re.IGNORECASE)
            for line in lines(folder.read(name)) if found else ():
                if words := line.split():
                    splits.setdefault(((found and found[1]) or "", PurePosixPath(words[0]).name), split)
    return splits


def _read(folder: Folder) -> Iterator[RawSample]:
    published = _published(folder)
    bases = {base for base, _ in published}
    index: dict[str, list[str]] = {}
    for image in folder.suffixed(IMAGES):
        index.setdefault(PurePosixPath(image).stem.casefold(), []).append(image)
    used: set[str] = set()
    for file in folder.suffixed({".xml"}):
        stem = PurePosixPath(file).stem
        listed = (published.get((base, stem)) for base in bases if file.startswith(base))
        split = next(filter(None, listed), None) or split_of_parts(file)
        root = _parse(folder.read(file))
        if root is None:
            yield broken(file, "broken XML", split=split)
            continue
        written = PurePosixPath((root.findtext("filename") or "").replace("\\", "/")).stem
        found = _find(stem, file, index) or _find(written, file, index)
        if found is None:
            yield broken(file, "annotation without an image", split=split)
            continue
        used.add(found)
        boxes = tuple(_box(entry) for entry in root.iter("object"))
        yield file_sample(folder, found, boxes=boxes, split=split, size=_size(root))
    for image in folder.suffixed(IMAGES):
        if image not in used:
            yield broken(image, "image without annotation")


def _parse(data: bytes) -> ElementTree.Element | None:
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        return None
    try:
        root = ElementTree.fromstring(data)  # noqa: S314 - no DTD, no entities
    except (ElementTree.ParseError, ValueError, LookupError):
        return None
    return root if root.tag == "annotation" else None


def _find(stem: str, file: str, index: dict[str, list[str]]) -> str | None:
    """The image of that name, whatever its suffix; of several, the nearest to the annotation. None if two are."""
    found = index.get(stem.casefold(), [])
    found = [path for path in found if PurePosixPath(path).stem == stem] or found
    parents = [PurePosixPath(file).parent, *PurePosixPath(file).parents[1:]]
    for parent in parents:
        if near := [path for path in found if parent in PurePosixPath(path).parents]:
            return near[0] if len(near) == 1 else None
    return None


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """(width, height) where the annotation states both; some tools write 0."""
    try:
        size = (int(root.findtext("size/width") or 0), int(root.findtext("size/height") or 0))
    except ValueError:
        return None
    return size if all(size) else None


def _box(entry: ElementTree.Element) -> RawBox:
    label = (entry.findtext("name") or "").strip()
    try:
        x1, y1, x2, y2 = (float(entry.findtext(f"bndbox/{corner}") or math.nan) for corner in _CORNERS)
    except ValueError:
        return RawBox(label, 0, 0, 0, 0, problem="annotation without a box")
    return RawBox(label, x1, y1, x2, y2)


VOC = Format(
    name="Pascal VOC",
    tasks=frozenset({"detection"}),
    layout="Pascal VOC: Annotations/1.xml and JPEGImages/1.jpg (or both side by side); optionally "
    "ImageSets/Main/{train,val,test}.txt",
    detect=_detect,
    read=_read,
)
