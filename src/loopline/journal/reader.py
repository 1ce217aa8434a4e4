"""The journal as others read it: the latest samples, and those whose truth is known."""

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

MOST_IDS = 500  # in one query
# Samples of model ?1 on whose label sources do not agree.
DISPUTED = "SELECT id FROM label WHERE model=?1 GROUP BY id HAVING count(DISTINCT label) > 1"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A sample that was served. time: seconds since 1970. input: an encoded image or a text, None where it is redacted.

    prediction: as the route for people answered. signals: see `tasks.signals`. label: a class, or a detector's boxes; None if unknown.
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
        """Its id in a manifest: sha256 of the encoded image, or of the text without white space around it."""
        given = self.input or b""
        return hashlib.sha256(given.strip().encode() if isinstance(given, str) else given).hexdigest()


class JournalReader:
    """Reads a journal's folder while others write it."""

    def __init__(self, folder: Path, parts: str | None = None) -> None:
        """parts: where they are; the collector has noted it. Raises LooplineError where there is no journal."""
        self.index = index.connect(folder)
        noted = self.index.execute("SELECT value FROM meta WHERE key='parts'").fetchone()
        self.parts = Parts(parts or (noted["value"] if noted else str(folder / FOLDER)))

    def latest(self, model: str, count: int, *, version: str | None = None, errors: bool = False) -> list[Entry]:
        """The newest samples first. errors: those that were refused, in place of those that were answered."""
        where = "status!=200" if errors else "status=200"
        where, known = (f"{where} AND version=?", (version,)) if version else (where, ())
        return self._entries(f"{where} ORDER BY time DESC LIMIT ?", (model, *known, count))

    def labelled(self, model: str, *, since: float = 0.0) -> list[Entry]:
        """Those whose label came after a time, in the order of the labels."""
        return self._entries("labelled>? ORDER BY labelled, id", (model, since))

    def answered(self, model: str, ids: Collection[str]) -> dict[str, Entry]:
        """Those of the samples that the journal has and that were answered, by id."""
        entries: dict[str, Entry] = {}
        wanted = sorted(ids)
        for start in range(0, len(wanted), MOST_IDS):
            some = wanted[start : start + MOST_IDS]
            where = f"status=200 AND id IN ({','.join('?' * len(some))})"
            entries |= {entry.id: entry for entry in self._entries(where, (model, *some))}
        return entries

    def label_counts(self, model: str, *, since: float = 0.0) -> dict[str, int]:
        """Labels by class that came after a time, without those that sources dispute; of a detector its objects."""
        counts: dict[str, int] = {}
        query = f"SELECT label FROM entry WHERE model=?1 AND labelled>?2 AND id NOT IN ({DISPUTED})"  # noqa: S608 - our own
        for row in self.index.execute(query, (model, since)):
            label = json.loads(row["label"])
            for name in [label] if isinstance(label, str) else [box["label"] for box in label]:
                counts[name] = counts.get(name, 0) + 1
        return counts

    def share_since(self, model: str, time: float, count: int) -> tuple[float, int]:
        """Of the latest `count` answered requests that were kept by chance: the share since `time`, and how many there are.

        Without any the share is 1: what was labelled is then all that is known of the traffic.
        """
        latest = "SELECT time FROM entry WHERE model=? AND status=200 AND fair ORDER BY time DESC LIMIT ?"
        times = [row["time"] for row in self.index.execute(latest, (model, count))]
        return (sum(at >= time for at in times) / len(times) if times else 1.0), len(times)

    def conflicts(self, model: str) -> dict[str, dict[str, Any]]:
        """Samples on whose label sources do not agree: id -> source -> label."""
        found: dict[str, dict[str, Any]] = {}
        query = f"SELECT id, source, label FROM label WHERE model=?1 AND id IN ({DISPUTED})"  # noqa: S608 - our own
        for row in self.index.execute(query, (model,)):
            found.setdefault(row["id"], {})[row["source"]] = json.loads(row["label"])
        return found

    def _entries(self, where: str, values: tuple[Any, ...]) -> list[Entry]:
        rows = self.index.execute(f"SELECT * FROM entry WHERE model=? AND {where}", values).fetchall()  # noqa: S608 - our own
        ids: dict[str, list[str]] = {}
        for row in rows:
            if row["part"]:
                ids.setdefault(row["part"], []).append(row["id"])
        read = {part: self.parts.read(part, wanted) for part, wanted in ids.items()}
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
