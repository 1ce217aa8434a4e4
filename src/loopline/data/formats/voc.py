"""Pascal VOC: one XML file per image with `object/name` and `object/bndbox`; lists in ImageSets/Main publish splits.

Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/index.html. Corners, whole or decimal, are read as edges, as
today's labelling tools write them. VOC's own annotations count pixels from 1, so they are off by a pixel at most.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from xml.etree import ElementTree

from loopline.data.formats.common import (
    IMAGES,
    SPLITS,
    Folder,
    Format,
    broken,
    file_problem,
    file_sample,
    lines,
    nfc,
    split_of_folder,
    split_of_parts,
)
from loopline.data.formats.finder import ImageFinder
from loopline.data.formats.xmlfile import UnusableXml, parse, root_tag
from loopline.data.raw import RawBox, RawSample
from loopline.errors import LooplineError

_LIST = re.compile(r"(.*/)?ImageSets/(?:Main/)?([^/]+)\.txt", re.IGNORECASE)
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _detect(folder: Folder) -> bool:
    return any(root_tag(folder.start(name)) == "annotation" for name in folder.suffixed({".xml"})[:50])


def _published(folder: Folder, stems: set[str]) -> dict[tuple[str, str], tuple[str, str]]:
    """(folder that holds ImageSets, image's name without suffix) -> split and line. train and val override trainval.

    stems: the names, without suffix, of all annotations and images.
    """
    lists = [
        (match[2].lower() == "trainval", list(SPLITS).index(split), split, match[1] or "", match[0])
        for match in filter(None, map(_LIST.fullmatch, folder.files))
        if (split := split_of_folder(match[2]))
    ]
    published: dict[tuple[str, str], tuple[str, str]] = {}
    for _, _, split, base, name in sorted(lists):
        for number, line in enumerate(lines(folder.read(name)), 1):
            # A name may hold spaces, and numbers may follow it.
            entries = [_stem(entry) for entry in (line.strip().strip('"'), *line.split()[:1]) if entry]
            if entries:
                entry = next((entry for entry in entries if entry in stems), entries[-1])
                published.setdefault((base, entry), (split, f"{name}:{number}"))
    return published


def _stem(entry: str) -> str:
    """The name without folders and without an image or XML suffix; any other dot belongs to the name."""
    path = PurePosixPath(entry.replace("\\", "/"))
    return nfc(path.stem if path.suffix.lower() in IMAGES | {".xml"} else path.name)


def _read(folder: Folder) -> Iterator[RawSample]:
    finder = ImageFinder(folder)
    files = folder.suffixed({".xml"})
    stems = {nfc(PurePosixPath(name).stem) for name in (*files, *finder.images)}
    published = _published(folder, stems)
    bases = {base for base, _ in published}

    def listed(file: str, name: str) -> str | None:
        keys = ((base, nfc(PurePosixPath(name).stem)) for base in bases if file.startswith(base))
        return next((published[key][0] for key in keys if key in published), None)

    for file in files:
        split = listed(file, file) or split_of_parts(file)
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
        split = split or listed(file, image) or split_of_parts(image)
        yield file_sample(folder, image, boxes=boxes, split=split, size=_size(root))
    for (_, stem), (split, where) in published.items():
        if stem not in stems:
            yield replace(broken(where, "listed image without an annotation", split=split), detail=stem)
    yield from finder.unused()


def _parse(folder: Folder, file: str) -> ElementTree.Element:
    root = parse(folder.read(file))
    if root.tag != "annotation":
        raise UnusableXml("XML that is not a VOC annotation")
    return root


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """(width, height) if the annotation states both, else None; some tools write 0."""
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
    content="image",
    truth="boxes",
    layout="Pascal VOC: Annotations/1.xml and JPEGImages/1.jpg (or both side by side); optionally "
    "ImageSets/Main/{train,val,test}.txt",
    detect=_detect,
    read=_read,
)
