"""CVAT XML 1.1 for images: `<annotations>` with an `<image>` for each file, its shapes, and its tags.

Format: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/. Boxes, polygons, ellipses and masks are read as their
bounding boxes. Video tracks are set aside, because they refer to frames instead of files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from xml.etree import ElementTree

from loopline.data.formats.common import (
    Folder,
    Format,
    broken,
    file_problem,
    file_sample,
    split_of_file,
    split_of_folder,
    split_of_parts,
)
from loopline.data.formats.finder import ImageFinder
from loopline.data.formats.xmlfile import UnusableXml, parse, root_tag, text
from loopline.data.raw import RawBox, RawSample
from loopline.errors import LooplineError

_SHAPES = ("box", "polygon", "ellipse", "mask", "polyline", "points", "cuboid", "skeleton")
Corners = tuple[float, float, float, float]


def _files(folder: Folder) -> list[str]:
    return [name for name in folder.suffixed({".xml"}) if root_tag(folder.start(name)) == "annotations"]


def _holds(folder: Folder, tags: tuple[str, ...]) -> bool:
    """Whether one of the XML files has one of these elements."""
    element = re.compile(f"<(?:{'|'.join(tags)})[\\s/>]")
    return any(element.search(text((folder.root / name).read_bytes())) for name in _files(folder))


def _read(folder: Folder, *, tags: bool) -> Iterator[RawSample]:
    finder = ImageFinder(folder)
    for file in _files(folder):
        try:
            root = parse(folder.read(file))
        except (LooplineError, UnusableXml) as error:
            yield replace(broken(file, file_problem(error)), detail=", ".join(map(str, error.args[1:])))
            continue
        for track in root.iter("track"):
            where = f"{file}:track {track.get('id', '?')}"
            yield replace(broken(where, "video track"), detail="export the task as CVAT for images")
        for place, image in enumerate(root.iter("image")):
            yield _sample(folder, file, place, image, finder, tags=tags)
    yield from finder.unused()


def _sample(
    folder: Folder, file: str, place: int, image: ElementTree.Element, finder: ImageFinder, *, tags: bool
) -> RawSample:
    name = image.get("name") or ""
    split = split_of_folder(image.get("subset") or "") or split_of_file(file)
    path = finder.find(name, file, split=split)
    if path is None:
        return broken(f"{file}:{name or f'image {place}'}", finder.missing, split=split)
    split = split or split_of_parts(path)
    if tags:
        return _tagged(folder, path, image, split)
    boxes = tuple(_box(shape, f"{file}:{name}") for shape in image if shape.tag in _SHAPES)
    sample = file_sample(folder, path, boxes=boxes, split=split)
    return sample if sample.problem else replace(sample, size=_size(image))


def _tagged(folder: Folder, path: str, image: ElementTree.Element, split: str | None) -> RawSample:
    labels = dict.fromkeys(tag.get("label") or "" for tag in image.iter("tag"))
    if len(labels) > 1:
        return replace(broken(path, "image with several classes", split=split), detail=", ".join(labels))
    return file_sample(folder, path, label=next(iter(labels), None), split=split)


def _size(image: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = int(image.get("width") or 0), int(image.get("height") or 0)
    except ValueError:
        return None
    return (width, height) if width and height else None


def _box(shape: ElementTree.Element, where: str) -> RawBox:
    label = shape.get("label") or ""
    detail = f"{where}: {shape.tag} {label}"
    if shape.get("outside") == "1":
        return RawBox(label, 0, 0, 0, 0, problem="shape outside the image", detail=detail)
    if shape.tag in ("polyline", "points", "cuboid", "skeleton"):
        return RawBox(
            label, 0, 0, 0, 0, problem="shape that is not a box, a polygon, an ellipse or a mask", detail=detail
        )
    try:
        return RawBox(label, *_corners(shape))
    except (KeyError, ValueError):
        return RawBox(label, 0, 0, 0, 0, problem="annotation without a box", detail=detail)


def _corners(shape: ElementTree.Element) -> Corners:
    """The bounding box of a shape. Raises KeyError or ValueError if its numbers are missing or invalid."""

    def value(name: str) -> float:
        return float(shape.attrib[name])

    angle = math.radians(float(shape.get("rotation") or 0))
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    if shape.tag == "polygon":
        points = [point.split(",") for point in shape.attrib["points"].split(";")]
        xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
        if not all(map(math.isfinite, xs + ys)):
            raise ValueError(shape.attrib["points"])
        return min(xs), min(ys), max(xs), max(ys)
    if shape.tag == "mask":
        left, top = value("left"), value("top")
        return left, top, left + value("width"), top + value("height")
    if shape.tag == "ellipse":
        x, y, radius_x, radius_y = value("cx"), value("cy"), value("rx"), value("ry")
        half, rise = math.hypot(radius_x * cos, radius_y * sin), math.hypot(radius_x * sin, radius_y * cos)
        return x - half, y - rise, x + half, y + rise
    x1, y1, x2, y2 = (value(name) for name in ("xtl", "ytl", "xbr", "ybr"))
    if not angle:
        return x1, y1, x2, y2
    x, y, half, rise = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2  # CVAT rotates around the centre
    across, down = half * cos + rise * sin, half * sin + rise * cos
    return x - across, y - down, x + across, y + down


CVAT = Format(
    name="CVAT XML",
    content="image",
    truth="boxes",
    layout="CVAT XML 1.1 (CVAT for images): annotations.xml with the images anywhere in the folder",
    detect=lambda folder: _holds(folder, (*_SHAPES, "track")),
    read=lambda folder: _read(folder, tags=False),
)
CVAT_TAGS = Format(
    name="CVAT XML with tags",
    content="image",
    truth="label",
    layout="CVAT XML 1.1 (CVAT for images) with a tag for each image",
    detect=lambda folder: _holds(folder, ("tag",)),
    read=lambda folder: _read(folder, tags=True),
)
