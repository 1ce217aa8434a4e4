"""Label Studio's JSON export: boxes and polygons for detection, choices for images and texts.

Formats: see loopline.tasks.labelstudio_json. The file refers to images by addresses: `/data/upload/1/0f3a9c1b-cat.jpg`,
`/data/local-files/?d=photos/cat.jpg`, `s3://bucket/cat.jpg`. The end of the path identifies the image in the folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopline.data.agreement import boxes_agree
from loopline.data.formats.common import (
    IMAGES,
    Folder,
    Format,
    broken,
    file_sample,
    json_text,
    load_json,
    nfc,
    split_of_file,
    split_of_parts,
    suffix,
)
from loopline.data.formats.finder import ImageFinder
from loopline.data.raw import RawBox, RawSample
from loopline.errors import LooplineError
from loopline.tasks import labelstudio_json
from loopline.tasks.base import Content, TruthColumn
from loopline.tasks.labelstudio_json import UnusableResult

_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")  # Label Studio puts it before the names of uploaded files
Label = str | tuple[RawBox, ...] | None


def _files(folder: Folder) -> list[str]:
    """The JSON files that are lists of tasks."""
    names = []
    for name in folder.suffixed({".json"}):
        if re.match(r"\[\s*\{", json_text(folder.start(name))):
            text = json_text((folder.root / name).read_bytes())
            if all(f'"{key}"' in text for key in ("annotations", "data", "result")):
                names.append(name)
    return names


def _minimal(folder: Folder) -> str:
    """Advice if a file is Label Studio's JSON-MIN export; else ""."""
    for name in folder.suffixed({".json"}):
        if '"annotation_id"' in json_text(folder.start(name)) and name not in _files(folder):
            return f"{name} looks like Label Studio's JSON-MIN, which lacks needed fields: export as JSON."
    return ""


def _detect(folder: Folder, content: Content, truth: TruthColumn) -> bool:
    key = '"x"' if truth == "boxes" else '"choices"'
    images = bool(folder.suffixed(IMAGES))
    return images == (content == "image") and any(
        key in json_text((folder.root / name).read_bytes()) for name in _files(folder)
    )


def _read(folder: Folder, content: Content, truth: TruthColumn) -> Iterator[RawSample]:
    finder = ImageFinder(folder)
    for file in _files(folder):
        tasks = load_json(folder, file)
        if not isinstance(tasks, list):
            raise LooplineError(f"{folder.root / file} is not Label Studio's JSON export, which is a list of tasks")
        split = split_of_file(file)
        for place, entry in enumerate(tasks):
            where = f"{file}:tasks[{place}]"
            try:
                annotations = labelstudio_json.submitted(entry)
                yield _sample(folder, finder, content, truth, entry["data"], annotations, where, split)
            except UnusableResult as error:
                reason = error.args[0] if len(error.args) > 1 else "task that is not from a JSON export"
                yield replace(broken(where, reason, split=split), detail=str(error.args[-1]))
    if content == "image":
        yield from finder.unused()


def _sample(
    folder: Folder,
    finder: ImageFinder,
    content: Content,
    truth: TruthColumn,
    data: dict[str, Any],
    annotations: list[list[labelstudio_json.Result]],
    where: str,
    split: str | None,
) -> RawSample:
    """The sample for one task. Raises UnusableResult with the reason and a detail of the task."""
    if content == "text":
        text = _only_value(data, lambda value: value is None or isinstance(value, str), "text")
        if not annotations:
            return broken(where, "task without annotation", split=split)
        label = _agreed([_choice(results) for results in annotations])
        return RawSample(where, None, text, label if isinstance(label, str) else None, None, split)
    path = _image(
        _only_value(data, lambda value: isinstance(value, str) and bool(_names(value)), "image"), where, finder, split
    )
    split = split or split_of_parts(path)
    if not annotations:
        return replace(broken(path, "task without annotation", split=split), detail=where)
    if truth == "label":
        label = _agreed([_choice(results) for results in annotations])
        return file_sample(folder, path, label=label if isinstance(label, str) else None, split=split)
    boxes = _agreed([_boxes(results, where) for results in annotations])
    sample = file_sample(folder, path, boxes=boxes if isinstance(boxes, tuple) else (), split=split)
    sizes = labelstudio_json.sizes(result for results in annotations for result in results)
    if len(sizes) > 1:
        raise UnusableResult(
            "regions drawn on images of several sizes", ", ".join(f"{width}x{height}" for width, height in sizes)
        )
    return sample if sample.problem else replace(sample, size=next(iter(sizes), None))


def _only_value(data: dict[str, Any], fits: Callable[[object], bool], name: str) -> str:
    """The value of `data` that holds the sample: the value under `name`, even an empty one, else the only value that fits."""
    values = [data[name]] if name in data else list(data.values())
    fitting = [value for value in values if fits(value)]
    if len(fitting) == 1 and isinstance(fitting[0], str):
        return fitting[0]
    raise UnusableResult(f"task without one {name}", f"data has {', '.join(map(str, data)) or 'nothing'}")


def _names(address: str) -> list[str]:
    """The file names that an image's address may stand for, most literal first; [] if it names no image."""
    parts = urlsplit(address) if "://" in address or address.startswith("/data/") else None
    path = next(iter(parse_qs(parts.query).get("d", [])), parts.path) if parts else address
    names = dict.fromkeys([path, unquote(path)])
    for name in list(names):
        folder, slash, last = name.rpartition("/")
        names[f"{folder}{slash}{_PREFIX.sub('', last)}"] = None
    return [name for name in names if suffix(name) in IMAGES]


def _image(address: str, where: str, finder: ImageFinder, split: str | None) -> str:
    for name in _names(address):
        if path := finder.find(name, where, split=split):
            return path
    raise UnusableResult(finder.missing, f"{where}: {address}")


def _choice(results: list[labelstudio_json.Result]) -> str | None:
    chosen = labelstudio_json.choices(results)
    if len(chosen) > 1:
        raise UnusableResult("sample with several classes", ", ".join(chosen))
    return chosen[0] if chosen else None


def _boxes(results: list[labelstudio_json.Result], where: str) -> tuple[RawBox, ...]:
    return tuple(
        RawBox(
            region.label,
            *region.corners,
            problem=region.problem,
            detail=f"{where}: {region.label}" if region.problem else "",
        )
        for region in labelstudio_json.regions(results)
    )


def _agreed(labels: list[Label]) -> Label:
    """The first annotator's label. Raises UnusableResult if another annotator contradicts it."""
    first, *others = labels
    for other in others:
        if isinstance(first, tuple) and isinstance(other, tuple):
            same = boxes_agree([box for box in first if not box.problem], [box for box in other if not box.problem])
        else:
            same = nfc(str(first)) == nfc(str(other))
        if not same:
            raise UnusableResult(
                "annotators disagree", "boxes differ" if isinstance(first, tuple) else f"{first}, {other}"
            )
    return first


def _format(content: Content, truth: TruthColumn, layout: str) -> Format:
    return Format(
        name="Label Studio JSON",
        content=content,
        truth=truth,
        layout=layout,
        detect=partial(_detect, content=content, truth=truth),
        read=partial(_read, content=content, truth=truth),
        advise=_minimal,
    )


LABEL_STUDIO = (
    _format(
        "image",
        "boxes",
        "Label Studio's JSON export with rectangles or polygons, and the images anywhere in the folder",
    ),
    _format("image", "label", "Label Studio's JSON export with a choice for each image, and the images in the folder"),
    _format("text", "label", "Label Studio's JSON export with a choice for each text"),
)
