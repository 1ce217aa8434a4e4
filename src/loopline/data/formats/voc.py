"""Pascal VOC: an XML an image with `object/name` and `object/bndbox`; published splits in ImageSets/Main.

Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/index.html. Corners are taken as edges as they stand, as
today's labelling tools write them, whole or with decimals. VOC's own count pixels from 1: a pixel off at most.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from xml.etree import ElementTree

from loopline.data.formats.common import (
    Folder,
    Format,
    broken,
    file_problem,
    file_sample,
    lines,
    nfc,
    split_of_parts,
)
from loopline.data.formats.finder import ImageFinder
from loopline.data.formats.xmlfile import UnusableXml, parse, root_tag
from loopline.data.raw import RawBox, RawSample
from loopline.errors import LooplineError

_LISTS = {"train": "train", "val": "val", "test": "test", "trainval": "train"}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _detect(folder: Folder) -> bool:
    return any(root_tag(folder.start(name)) == "annotation" for name in folder.suffixed({".xml"})[:50])


def _published(folder: Folder) -> dict[tuple[str, str], str]:
    """(folder that holds ImageSets, image's name without suffix) -> split. train and val go before trainval."""
    splits: dict[tuple[str, str], str] = {}
    for listing, split in _LISTS.items():
        for name in folder.files:
            found = re.fullmatch(r"(.*/)?ImageSets/Main/" + listing + r"\.txt", name, re.IGNORECASE)
            for line in lines(folder.read(name)) if found else ():
                if words := line.split():
                    splits.setdefault(((found and found[1]) or "", nfc(PurePosixPath(words[0]).name)), split)
    return splits


def _read(folder: Folder) -> Iterator[RawSample]:
    published = _published(folder)
    bases = {base for base, _ in published}
    finder = ImageFinder(folder)
    for file in folder.suffixed({".xml"}):
        stem = nfc(PurePosixPath(file).stem)
        listed = (published.get((base, stem)) for base in bases if file.startswith(base))
        split = next(filter(None, listed), None) or split_of_parts(file)
        try:
            root = _parse(folder, file)
        except (LooplineError, UnusableXml) as error:
            yield replace(broken(file, file_problem(error), split=split), detail=", ".join(map(str, error.args[1:])))
            continue
        written = root.findtext("filename") or ""
        image = (
            finder.find(file, file, split=split, any_suffix=True)
            or finder.find(written, file, split=split)
            or finder.find(written, file, split=split, any_suffix=True)
        )
        if image is None:
            yield replace(broken(file, "annotation without an image", split=split), detail=finder.missing)
            continue
        boxes = tuple(_box(entry) for entry in root.iter("object"))
        yield file_sample(folder, image, boxes=boxes, split=split, size=_size(root))
    for image in finder.unused():
        yield broken(image, "image without annotation")


def _parse(folder: Folder, file: str) -> ElementTree.Element:
    root = parse(folder.read(file))
    if root.tag != "annotation":
        raise UnusableXml("XML that is not a VOC annotation")
    return root


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
        x1, y1, x2, y2 = (float(entry.findtext(f"bndbox/{corner}") or "") for corner in _CORNERS)
    except ValueError:
        shown = ", ".join(f"{corner} {entry.findtext(f'bndbox/{corner}')}" for corner in _CORNERS)
        return RawBox(label, 0, 0, 0, 0, problem="annotation without a box", detail=f"{label}: {shown}")
    return RawBox(label, x1, y1, x2, y2)


VOC = Format(
    name="Pascal VOC",
    tasks=frozenset({"detection"}),
    layout="Pascal VOC: Annotations/1.xml and JPEGImages/1.jpg (or both side by side); optionally "
    "ImageSets/Main/{train,val,test}.txt",
    detect=_detect,
    read=_read,
)
