"""Labels that come back in a file: a table or JSON records with `id` and `label`, or Label Studio's JSON export.

A label is taken only if it can be joined to a sample of the journal. The others are counted by reason.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopline.errors import LooplineError
from loopline.journal.reader import Entry
from loopline.tables import columns, encoding, table_reader
from loopline.tasks import image, labelstudio_json

CORNERS = ("x1", "y1", "x2", "y2")
ROUNDING = 2  # pixels by which the size noted in a region may differ from the image's
# The first bytes of files that are not text, and what to tell the user.
NO_TEXT = {
    b"PK\3\4": "is an Excel workbook or a zip archive: save the sheet as CSV UTF-8, or unpack the archive",
    b"\xd0\xcf\x11\xe0": "is an Excel workbook: save the sheet as CSV UTF-8",
    b"\x1f\x8b": "is packed with gzip: unpack it",
}
FOREIGN = frozenset({"annotation_id", "lead_time"})  # columns of Label Studio's own CSV, whose `id` is a task's id
# Keys of its JSON export. The colon tells them from a class of that name.
TASK = re.compile(r'"(data|annotations|completions)"\s*:')


@dataclass(frozen=True)
class Returned:
    """The content of a file of labels.

    labels: sample id -> its labels, each a class, or the results of one annotation if `annotated` (Label Studio's export).
    passed_over: reason -> number of rows or tasks without a usable label.
    """

    labels: dict[str, list[Any]]
    passed_over: Counter[str]
    annotated: bool = False


@dataclass(frozen=True)
class ImportedLabels:
    """Labels that fit a sample of the journal: id -> a class, or a detector's boxes. passed_over: reason -> number of labels."""

    labels: dict[str, Any] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)


class _PassedOver(ValueError):
    """The label is not taken; the message is the reason."""


def read(path: Path) -> Returned:
    """Read a file of labels. Raises LooplineError if it cannot be read or its format is unknown."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
        if no_text := next((advice for start, advice in NO_TEXT.items() if head.startswith(start)), None):
            raise LooplineError(f"{path} {no_text}")
        if not encoding.decode(head).lstrip().startswith(("[", "{")):
            return _table(path, path.name)
        content = path.read_bytes()
        if TASK.search(encoding.decode(content)):
            return _tasks(path, content)
        return _table(path, f"{path.name}.jsonl", FOREIGN | {"annotator"})
    except OSError as error:
        raise LooplineError(f"{path} cannot be read: {error}") from error


def _columns(names: Sequence[str]) -> list[str] | None:
    identity, label = (columns.match(names, [column]) for column in ("id", "label"))
    return None if identity is None or label is None else [identity, label]


def _table(path: Path, name: str, foreign: Set[str] = FOREIGN) -> Returned:
    """Read a table of labels. name: its suffix gives the format. foreign: columns that mark another tool's export."""
    labels: dict[str, list[Any]] = {}
    passed_over: Counter[str] = Counter()
    with path.open("rb") as file:
        table = table_reader.read(file, str(path), name, _columns)
        if {columns.normal(name) for name in table.columns} & foreign:
            raise LooplineError(
                f"{path} is Label Studio's CSV or JSON-MIN, whose ids are those of its tasks: export as JSON"
            )
        if table.chosen is None:
            names = [name[:40] for name in table.columns[:5]] + ["..."] * (len(table.columns) > 5)
            raise LooplineError(f"{path}: the columns id and label are needed; it has {names}")
        for row in table.rows:
            if row.problem is not None:
                raise LooplineError(f"{path}, line {row.number}: {row.problem}")
            try:
                identity, label = ((columns.cell(value, "cell") or "").strip() for value in row.values)
            except columns.Unreadable as error:
                raise LooplineError(f"{path}, line {row.number}: {error}") from error
            if not identity:
                raise LooplineError(f"{path}, line {row.number}: no id")
            if label:
                labels.setdefault(identity, []).append(label)
            else:
                passed_over["no label"] += 1
    return Returned(labels, passed_over)


def _tasks(path: Path, content: bytes) -> Returned:
    wrong = f"{path} is not Label Studio's JSON export"
    try:
        tasks = json.loads(content)  # in UTF-8, UTF-16 or UTF-32
    except (ValueError, RecursionError) as error:
        raise LooplineError(f"{wrong}: {error}") from error
    if not isinstance(tasks, list):
        raise LooplineError(f"{wrong}: it is an object, not a list of tasks")
    labels: dict[str, list[Any]] = {}
    passed_over: Counter[str] = Counter()
    for number, task in enumerate(tasks):
        try:
            annotations = labelstudio_json.submitted(task)
        except labelstudio_json.UnusableResult as error:
            raise LooplineError(f"{wrong}: task {number}: {error}") from error
        identity = task["data"].get("id")
        if not isinstance(identity, str) or not identity:
            passed_over["the task has no sample id: label the tasks that `loopline label export` wrote"] += 1
        elif not annotations:
            passed_over["no label"] += 1
        else:
            labels.setdefault(identity, []).extend(annotations)
    return Returned(labels, passed_over, annotated=True)


def take(returned: Returned, entries: Mapping[str, Entry]) -> ImportedLabels:
    """Choose the labels that fit the journal's samples. entries: the answered samples, by id."""
    taken = ImportedLabels(passed_over=Counter(returned.passed_over))
    for identity, labels in returned.labels.items():
        entry = entries.get(identity)
        if entry is None:
            taken.passed_over["the journal does not have the sample"] += 1
            continue
        try:
            readings = [_understood(label, entry, taken) if returned.annotated else nfc(label) for label in labels]
            if any(label != readings[0] for label in readings):
                raise _PassedOver("its labels disagree")
            if isinstance(readings[0], str) == ("boxes" in entry.prediction):
                raise _PassedOver("the label is not of the kind that the model predicts")
        except (_PassedOver, labelstudio_json.UnusableResult) as error:
            taken.passed_over[str(error)] += 1
        else:
            taken.labels[identity] = readings[0]
    return taken


def _understood(results: list[labelstudio_json.Result], entry: Entry, taken: ImportedLabels) -> Any:
    """The label that an annotation gives this sample: a class, or boxes in pixels of the upright image."""
    boxes = "boxes" in entry.prediction
    for kind in labelstudio_json.other_kinds(results, regions=boxes):
        taken.passed_over[f"unused kind of result: {kind}"] += 1
    return _boxes(results, entry) if boxes else _choice(results)


def _choice(results: list[labelstudio_json.Result]) -> str:
    chosen = labelstudio_json.choices(results)
    if len(chosen) != 1:
        raise _PassedOver("several classes for one sample" if chosen else "no class is chosen")
    return nfc(chosen[0])


def _boxes(results: list[labelstudio_json.Result], entry: Entry) -> list[dict[str, Any]]:
    """All boxes, or _PassedOver: a list without the unusable box would say that there is no object in its place."""
    regions = labelstudio_json.regions(results)
    for region in regions:
        if region.problem or not region.label:
            raise _PassedOver(region.problem or "region without a class")
    if results and not regions:
        raise _PassedOver("results but no region: only an empty annotation means that the image has no object")
    sizes = labelstudio_json.sizes(results)
    if sizes and isinstance(entry.input, bytes):
        size = upright(entry.input)
        if any(abs(side - real) > ROUNDING for drawn in sizes for side, real in zip(drawn, size, strict=True)):
            raise _PassedOver("boxes drawn on an image of another size")
    boxes = [{"label": nfc(region.label), **dict(zip(CORNERS, region.corners, strict=True))} for region in regions]
    return sorted(boxes, key=json.dumps)  # the order in which boxes were drawn does not matter


def nfc(label: str) -> str:
    """The class's name with composed characters (NFC), as ingest writes it; some tools send decomposed ones."""
    return unicodedata.normalize("NFC", label)


def upright(content: bytes) -> tuple[int, int]:
    """Return the width and height in pixels of an image turned by its EXIF orientation. Raises UnreadableImage."""
    height, width, _ = image.decode(content, 1).shape
    return width, height
