"""The journal's index in SQLite: where each sample is stored, its prediction, its label, and totals of the labelled quality.

A segment is taken in one transaction that also notes its name. So after a kill it is taken again, and no line counts twice.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loopline.errors import LooplineError
from loopline.journal import quality

NAME = "index.db"
MOST_WAITING = 100_000  # labels without a sample
SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (
  model TEXT, id TEXT, version TEXT, time REAL, status INTEGER, reason TEXT, fair INTEGER,
  part TEXT, content TEXT, predicted TEXT, label TEXT, source TEXT, labelled REAL, quality REAL,
  PRIMARY KEY (model, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entry_time ON entry (model, time);
CREATE INDEX IF NOT EXISTS entry_part ON entry (part);
CREATE TABLE IF NOT EXISTS label (model TEXT, id TEXT, source TEXT, label TEXT, time REAL, chosen INTEGER,
  PRIMARY KEY (model, id, source));
CREATE TABLE IF NOT EXISTS total (model TEXT, version TEXT, rows INTEGER, quality REAL, PRIMARY KEY (model, version));
CREATE TABLE IF NOT EXISTS segment (name TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS part (path TEXT PRIMARY KEY, time REAL, bytes INTEGER);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT);
"""


def connect(folder: Path, *, write: bool = False) -> sqlite3.Connection:
    """Open the journal's index; with `write`, create it if needed. Raises LooplineError if it is missing or cannot be opened."""
    path = folder / NAME
    if not write and not path.exists():
        raise LooplineError(f"{folder} has no journal index: start `loopline journal {folder}` first")
    try:
        connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        if write:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(SCHEMA)
        else:
            connection.execute("PRAGMA query_only=1")
    except sqlite3.Error as error:
        raise LooplineError(f"{path} cannot be opened: {error}") from error
    return connection


def take(index: sqlite3.Connection, segment: str, lines: Iterable[dict[str, Any]]) -> int:
    """Add a segment's lines to the index, once; return how many were new. Malformed lines are skipped."""
    count = 0
    with transaction(index):
        if index.execute("INSERT OR IGNORE INTO segment VALUES (?)", (segment,)).rowcount:
            for line in lines:
                try:
                    count += _entry(index, line) if line["kind"] == "entry" else _label(index, line)
                except (KeyError, TypeError, AttributeError):
                    continue
    return count


@contextmanager
def transaction(index: sqlite3.Connection) -> Iterator[None]:
    """A transaction on the index."""
    with index:  # commits, or rolls back on any exception
        index.execute("BEGIN IMMEDIATE")
        yield


def _entry(index: sqlite3.Connection, line: dict[str, Any]) -> int:
    model, identity = line["model"], line["id"]
    row = (model, identity, line["version"], line["time"], line["status"], line["reason"], line["fair"])
    new = index.execute(
        "INSERT OR IGNORE INTO entry (model, id, version, time, status, reason, fair, content, predicted)"
        " VALUES (?,?,?,?,?,?,?,?,?)",
        (*row, json.dumps(line), json.dumps(line["prediction"])),
    ).rowcount
    labels = index.execute("SELECT * FROM label WHERE model=? AND id=? ORDER BY time", (model, identity))
    for label in labels.fetchall() if new else ():
        _join(index, label)
    return new


def _label(index: sqlite3.Connection, line: dict[str, Any]) -> int:
    key, label = (line["model"], line["id"], line["source"]), line["label"]
    if isinstance(label, list):  # sorted, because the labels of two sources are compared as JSON
        label = sorted(label, key=json.dumps)
    row = (*key, json.dumps(label), line["time"], line.get("chosen", False))
    index.execute("INSERT OR REPLACE INTO label VALUES (?,?,?,?,?,?)", row)
    _join(index, index.execute("SELECT * FROM label WHERE model=? AND id=? AND source=?", key).fetchone())
    return 1


def _join(index: sqlite3.Connection, label: sqlite3.Row) -> None:
    """Join a label to its entry, if the journal has it. The latest label is the entry's label.

    The totals only rise, so the first label counts there. They count only fair samples: those drawn at random whose label was
    not requested because the sample looked doubtful.
    """
    key = label["model"], label["id"]
    entry = index.execute("SELECT * FROM entry WHERE model=? AND id=? AND status=200", key).fetchone()
    if entry is None:
        return
    value = quality.of(json.loads(entry["predicted"]), json.loads(label["label"]))
    index.execute(
        "UPDATE entry SET label=?, source=?, labelled=?, quality=? WHERE model=? AND id=?",
        (label["label"], label["source"], label["time"], value, *key),
    )
    if entry["quality"] is None and entry["fair"] and not label["chosen"]:
        index.execute(
            "INSERT INTO total VALUES (?,?,1,?) ON CONFLICT DO UPDATE SET rows=rows+1, quality=quality+excluded.quality",
            (label["model"], entry["version"], value),
        )


def forget(index: sqlite3.Connection, segments: Iterable[str]) -> None:
    """Delete the names of segments whose files are deleted."""
    index.executemany("DELETE FROM segment WHERE name=?", [(name,) for name in segments])


def waiting_labels(index: sqlite3.Connection, older: float) -> int:
    """Count the labels without a sample, after deleting those older than `older` seconds and the oldest beyond MOST_WAITING."""
    no_sample = "NOT EXISTS (SELECT 1 FROM entry WHERE entry.model=label.model AND entry.id=label.id)"
    index.execute(f"DELETE FROM label WHERE time < ? AND {no_sample}", (time.time() - older,))  # noqa: S608 - constants
    waiting = int(index.execute(f"SELECT count(*) FROM label WHERE {no_sample}").fetchone()[0])  # noqa: S608
    if waiting > MOST_WAITING:
        oldest = f"SELECT rowid FROM label WHERE {no_sample} ORDER BY time LIMIT ?"  # noqa: S608
        index.execute(f"DELETE FROM label WHERE rowid IN ({oldest})", (waiting - MOST_WAITING,))  # noqa: S608
    return min(waiting, MOST_WAITING)
