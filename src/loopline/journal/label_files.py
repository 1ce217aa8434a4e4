"""Export samples for people to label, and labelled samples as a data set. `annotations` reads the labels that come back.

For labelling it writes `images/` (unless the samples are texts), `labels.csv` with an empty column, and for Label Studio
`tasks.json` and `label-config.xml` (formats: https://labelstud.io/guide/tasks and https://labelstud.io/guide/export).
The request's id identifies a sample.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from loopline.errors import LooplineError
from loopline.journal.annotations import upright
from loopline.journal.reader import Entry

SIGNATURES = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"RIFF": ".webp"}


def export(entries: Sequence[Entry], folder: Path, classes: Sequence[str]) -> None:
    """Write the samples to a new folder for labelling. Raises LooplineError if the folder is not empty."""
    _new(folder)
    boxes = any("boxes" in entry.prediction for entry in entries)
    image = any(isinstance(entry.input, bytes) for entry in entries)
    rows: list[list[Any]] = []
    tasks: list[dict[str, Any]] = []
    for entry in entries:
        place = _save(entry, folder / "images")
        data = {"id": entry.id, "model": entry.model}
        data |= {"image": f"/data/local-files/?d=images/{place}"} if image else {"text": str(entry.input)}
        tasks.append({"data": data, "predictions": [_suggested(entry)]})
        rows.append([entry.id, f"images/{place}" if image else entry.input, entry.prediction.get("label", ""), ""])
    (folder / "tasks.json").write_text(json.dumps(tasks, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "label-config.xml").write_text(
        _config(classes, image=bool(rows and tasks[0]["data"].get("image")), boxes=boxes)
    )
    if not boxes:
        with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["id", "sample", "predicted", "label"], *rows])


def batch(entries: Sequence[Entry], folder: Path) -> None:
    """Write labelled samples as a data set for `loopline data add`: a folder for each class, COCO, or CSV for texts.

    Raises LooplineError if the folder is not empty.
    """
    _new(folder)
    if isinstance(entries[0].input, str):
        with (folder / "texts.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *([entry.input, entry.label] for entry in entries)])
    elif isinstance(entries[0].label, str):
        for entry in entries:
            _save(entry, folder / _folder_name(entry.label))
    else:
        (folder / "instances.json").write_text(json.dumps(_coco(entries, folder / "images")), encoding="utf-8")


def _folder_name(label: str) -> str:
    """The class as a folder's name that data/formats/folders.py reads: unsuitable characters are percent-encoded."""
    name = label.replace("%", "%25").replace("/", "%2F")
    return name.replace(".", "%2E", 1) if name.startswith(".") else name


def _new(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise LooplineError(f"{folder} is not empty: choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)


def _save(entry: Entry, folder: Path) -> str:
    """Write an image and return its file's name, a hash of the request's id. For a text, write nothing and return ""."""
    if not isinstance(entry.input, bytes):
        return ""
    suffix = next((end for start, end in SIGNATURES.items() if entry.input.startswith(start)), ".png")
    name = hashlib.sha256(entry.id.encode()).hexdigest()[:16] + suffix
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(entry.input)
    return name


def _suggested(entry: Entry) -> dict[str, Any]:
    """The model's answer in Label Studio's form, for the labeller to confirm or correct."""
    if "boxes" not in entry.prediction:
        value = {"choices": [entry.prediction.get("label", "")]}
        result = [{"from_name": "label", "to_name": "sample", "type": "choices", "value": value}]
        return {"model_version": entry.version, "score": entry.prediction.get("probability"), "result": result}
    assert isinstance(entry.input, bytes), "boxes are of images"
    width, height = upright(entry.input)
    result = []
    for box in entry.prediction["boxes"]:
        value = {
            "x": 100 * box["x1"] / width,
            "y": 100 * box["y1"] / height,
            "width": 100 * (box["x2"] - box["x1"]) / width,
            "height": 100 * (box["y2"] - box["y1"]) / height,
            "rectanglelabels": [box["label"]],
        }
        region: dict[str, Any] = {"from_name": "label", "to_name": "sample", "type": "rectanglelabels"}
        result.append(region | {"original_width": width, "original_height": height, "value": value})
    return {"model_version": entry.version, "result": result}


def _config(classes: Sequence[str], *, image: bool, boxes: bool) -> str:
    kind = "Image" if image else "Text"
    group, item = ("RectangleLabels", "Label") if boxes else ("Choices", "Choice")
    rows = "".join(f"    <{item} value={quoteattr(name)}/>\n" for name in classes)
    return (
        f'<View>\n  <{kind} name="sample" value="${kind.lower()}"/>\n'
        f'  <{group} name="label" toName="sample">\n{rows}  </{group}>\n</View>\n'
    )


def _coco(entries: Sequence[Entry], folder: Path) -> dict[str, Any]:
    names = sorted({box["label"] for entry in entries for box in entry.label})
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, entry in enumerate(entries):
        assert isinstance(entry.input, bytes), "boxes are of images"
        width, height = upright(entry.input)
        images.append({"id": number, "file_name": _save(entry, folder), "width": width, "height": height})
        for box in entry.label:
            corner_and_size = [box["x1"], box["y1"], box["x2"] - box["x1"], box["y2"] - box["y1"]]
            annotation = {"id": len(annotations), "image_id": number, "category_id": names.index(box["label"])}
            annotations.append(
                annotation | {"bbox": corner_and_size, "area": corner_and_size[2] * corner_and_size[3], "iscrowd": 0}
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}
