"""Read the journal: the latest samples, and the labelled ones."""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from loopline.journal import index
from loopline.journal.storage import FOLDER, Parts

MOST_IDS = 500  # ids in one query
# Samples of model ?1 on whose label sources disagree.
DISPUTED = "SELECT id FROM label WHERE model=?1 GROUP BY id HAVING count(DISTINCT label) > 1"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A served sample.

    time: seconds since 1970. input: an encoded image or a text, None if redacted. prediction: the answer in the form of
    the route /predict. signals: see `tasks.signals`. label: a class, or a detector's boxes; None if unknown. source: of the label.
    """

    id: str
    time: float
    model: str
    version: str
    status: int
    reason: str
    input: bytes | str | None
    prediction: dict[str, Any]
    signals: dict[str, float]
    label: Any
    source: str | None

    @property
    def content(self) -> str:
        """The sample's id in a manifest: SHA-256 of the encoded image, or of the text without white space around it."""
        content = self.input or b""
        return hashlib.sha256(content.strip().encode() if isinstance(content, str) else content).hexdigest()


class JournalReader:
    """A reader of a journal's folder. Servers and the collector may write to it at the same time."""

    def __init__(self, folder: Path, parts: str | None = None) -> None:
        """parts: URL of the parts (default: the one that the collector noted). Raises LooplineError if there is no journal."""
        self.index = index.connect(folder)
        noted = self.index.execute("SELECT value FROM meta WHERE key='parts'").fetchone()
        self.parts = Parts(parts or (noted["value"] if noted else str(folder / FOLDER)))

    def latest(self, model: str, count: int, *, version: str | None = None, errors: bool = False) -> list[Entry]:
        """The latest `count` answered samples, the newest first. errors: the refused samples instead."""
        where = "status!=200" if errors else "status=200"
        where, values = (f"{where} AND version=?", (version,)) if version else (where, ())
        return self._entries(f"{where} ORDER BY time DESC LIMIT ?", (model, *values, count))

    def labelled(self, model: str, *, since: float = 0.0) -> list[Entry]:
        """Samples whose label came after `since` (seconds since 1970), in the order in which the labels came."""
        return self._entries("labelled>? ORDER BY labelled, id", (model, since))

    def answered(self, model: str, ids: Collection[str]) -> dict[str, Entry]:
        """The answered samples with these ids that the journal has, by id."""
        entries: dict[str, Entry] = {}
        ordered = sorted(ids)
        for start in range(0, len(ordered), MOST_IDS):
            chunk = ordered[start : start + MOST_IDS]
            where = f"status=200 AND id IN ({','.join('?' * len(chunk))})"
            entries |= {entry.id: entry for entry in self._entries(where, (model, *chunk))}
        return entries

    def label_counts(self, model: str, *, since: float = 0.0) -> dict[str, int]:
        """class -> number of labels that came after `since`, without disputed samples; for a detector each box counts."""
        counts: dict[str, int] = {}
        query = f"SELECT label FROM entry WHERE model=?1 AND labelled>?2 AND id NOT IN ({DISPUTED})"  # noqa: S608 - constants
        for row in self.index.execute(query, (model, since)):
            label = json.loads(row["label"])
            for name in [label] if isinstance(label, str) else [box["label"] for box in label]:
                counts[name] = counts.get(name, 0) + 1
        return counts

    def share_since(self, model: str, time: float, count: int) -> tuple[float, int]:
        """Of the latest `count` answered requests that were drawn at random: the share since `time`, and their number.

        Without any such request the share is 1, because the labelled samples are then all that is known about the traffic.
        """
        latest = "SELECT time FROM entry WHERE model=? AND status=200 AND fair ORDER BY time DESC LIMIT ?"
        times = [row["time"] for row in self.index.execute(latest, (model, count))]
        return (sum(at >= time for at in times) / len(times) if times else 1.0), len(times)

    def conflicts(self, model: str) -> dict[str, dict[str, Any]]:
        """Samples on whose label sources disagree: id -> source -> label."""
        labels: dict[str, dict[str, Any]] = {}
        query = f"SELECT id, source, label FROM label WHERE model=?1 AND id IN ({DISPUTED})"  # noqa: S608 - constants
        for row in self.index.execute(query, (model,)):
            labels.setdefault(row["id"], {})[row["source"]] = json.loads(row["label"])
        return labels

    def _entries(self, where: str, values: tuple[Any, ...]) -> list[Entry]:
        rows = self.index.execute(f"SELECT * FROM entry WHERE model=? AND {where}", values).fetchall()  # noqa: S608 - constants
        ids: dict[str, list[str]] = {}
        for row in rows:
            if row["part"]:
                ids.setdefault(row["part"], []).append(row["id"])
        read = {part: self.parts.read(part, part_ids) for part, part_ids in ids.items()}
        return [_entry(row, read[row["part"]].get(row["id"]) if row["part"] else None) for row in rows]


def _entry(row: sqlite3.Row, stored: dict[str, Any] | None) -> Entry:
    if stored is None:  # not in a part yet
        line = json.loads(row["content"])
        image, signals, prediction = line.get("image"), line["signals"], line["prediction"]
        given = base64.b64decode(image) if image else line.get("text")
    else:
        signals, prediction = dict(stored["signals"]), json.loads(stored["prediction"])
        given = stored["image"] if stored["image"] is not None else stored["text"]
    return Entry(
        id=row["id"],
        time=row["time"],
        model=row["model"],
        version=row["version"],
        status=row["status"],
        reason=row["reason"],
        input=given,
        prediction=prediction,
        signals={name: nan if value is None else value for name, value in signals.items()},  # JSON has no NaN
        label=json.loads(row["label"]) if row["label"] else None,
        source=row["source"],
    )
