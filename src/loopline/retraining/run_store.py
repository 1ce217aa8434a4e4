"""The retrainer's state in `.loopline/retrainer/state.db`: alerts, decisions, runs and steps. It survives a kill at any point.

An alert's id is derived from its model, fingerprint and start, and its run has the same id, so one alert cannot start two runs.
A decision and its consequences are stored in one transaction. Its line in the decision log is written afterwards, unless a search
of the log finds it there already.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopline.errors import LooplineError
from loopline.lib import locks
from loopline.retraining.guard import Action, Alert, Past, RetrainingDecision

DOORS = ("alertmanager", "grafana")
WAITING = (Action.WAIT, Action.ASK_LABELS, Action.AWAIT_APPROVAL)
SCHEMA = """
CREATE TABLE IF NOT EXISTS alerts (
    id TEXT PRIMARY KEY, model TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, source TEXT NOT NULL, received REAL NOT NULL,
    look REAL NOT NULL, over INTEGER NOT NULL DEFAULT 0, approved INTEGER NOT NULL DEFAULT 0, action TEXT, reasons TEXT);
CREATE TABLE IF NOT EXISTS decisions (
    id INTEGER PRIMARY KEY, alert TEXT NOT NULL, model TEXT NOT NULL, action TEXT NOT NULL, version TEXT NOT NULL,
    reasons TEXT NOT NULL, logged INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, model TEXT NOT NULL, version TEXT NOT NULL, started REAL NOT NULL, ended REAL, result TEXT,
    step TEXT, pid INTEGER, created REAL, kills INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS signatures (signature TEXT PRIMARY KEY, until REAL NOT NULL);
"""


@dataclass(frozen=True, kw_only=True)
class AlertRow:
    """An alert with the last decision on it.

    received, look: when it arrived and when the guard looks at it next, in seconds since the epoch. over: 1 once it is resolved.
    approved: 1 once a person approved its run. action, reasons: of the last decision, None before the first; reasons are JSON.
    """

    id: str
    model: str
    name: str
    version: str
    source: str
    received: float
    look: float
    over: int
    approved: int
    action: str | None
    reasons: str | None

    @property
    def alert(self) -> Alert:
        """The alert for the guard. It is authentic if it came by a route that authenticates its senders."""
        return Alert(
            model=self.model,
            name=self.name,
            version=self.version,
            firing=not self.over,
            authentic=self.source in DOORS,
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run. A run that an alert started has the alert's id.

    step: the current or the next one. pid, created: of the step's process. result: None until the run ends. kills: how many of
    its steps' processes were killed.
    """

    id: str
    model: str
    version: str
    started: float
    ended: float | None
    result: str | None
    step: str | None
    pid: int | None
    created: float | None
    kills: int


@dataclass(frozen=True)
class UnloggedDecision:
    """A decision whose line in the decision log may still be missing."""

    id: int
    alert: str
    model: str
    action: str
    version: str
    reasons: tuple[str, ...]


def key(model: str, fingerprint: str, starts_at: str) -> str:
    """The id of an alert and of its run: the model and 12 hex digits of a SHA-256."""
    return f"{model}-{hashlib.sha256(json.dumps([model, fingerprint, starts_at]).encode()).hexdigest()[:12]}"


class RetrainerStore:
    """The state as a database. Its methods are thread-safe, and other processes may use it at the same time."""

    def __init__(self, folder: Path) -> None:
        """Open the database in `folder`; create it if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = threading.RLock()
        self._db = sqlite3.connect(folder / "state.db", timeout=30, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(SCHEMA)
        with self._transaction() as db:  # a database of an earlier version lacks the column
            if "kills" not in {column["name"] for column in db.execute("PRAGMA table_info(runs)")}:
                db.execute("ALTER TABLE runs ADD COLUMN kills INTEGER NOT NULL DEFAULT 0")

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Hold the lock of the one process that carries out runs. Raises LooplineError if another process holds it."""
        with ExitStack() as lock:
            try:
                lock.enter_context(locks.held(self.folder / "lock", wait=False))
            except OSError as error:
                raise LooplineError(f"another retrainer works in {self.folder}: stop it first") from error
            yield

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._db:  # the connection commits, or rolls back whatever ends it
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    def _rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with self._lock:
            return [dict(row) for row in self._db.execute(query, values)]

    # Alerts

    def receive(self, alerts: list[tuple[str, Alert]], source: str, signature: tuple[str, float] | None = None) -> bool:
        """Store new alerts, each as (id, alert), and mark resolved ones. Return False and store nothing if the signature was seen.

        signature: the signature and when it may be forgotten, in seconds since the epoch.
        """
        now = time.time()
        with self._transaction() as db:
            if signature:
                db.execute("DELETE FROM signatures WHERE until < ?", (now,))
                if not db.execute("INSERT OR IGNORE INTO signatures VALUES (?, ?)", signature).rowcount:
                    return False
            for id_, alert in alerts:
                if alert.firing:
                    values = (id_, alert.model, alert.name, alert.version, source, now, now)
                    columns = "id, model, name, version, source, received, look"
                    db.execute(f"INSERT OR IGNORE INTO alerts ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)  # noqa: S608
                else:
                    db.execute("UPDATE alerts SET over = 1, look = ? WHERE id = ? AND over = 0", (now, id_))
        return True

    def alerts(self) -> list[AlertRow]:
        """All alerts, the oldest first."""
        return [AlertRow(**row) for row in self._rows("SELECT * FROM alerts ORDER BY received, rowid")]

    def due(self) -> AlertRow | None:
        """The oldest undecided or waiting alert whose time to be looked at has come."""
        waits = "action IS NULL OR action IN (?, ?, ?)"
        query = f"SELECT * FROM alerts WHERE look <= ? AND ({waits}) ORDER BY received, rowid LIMIT 1"  # noqa: S608 - constants
        rows = self._rows(query, time.time(), *(action.value for action in WAITING))
        return AlertRow(**rows[0]) if rows else None

    def approve(self, id_: str) -> None:
        """Note that a person approved the run of this alert. Raises LooplineError if no such alert waits."""
        with self._transaction() as db:
            waits = "action IS NULL OR action IN (?, ?, ?)"
            query = f"UPDATE alerts SET approved = 1, look = 0 WHERE id = ? AND ({waits})"  # noqa: S608 - constants
            if not db.execute(query, (id_, *(action.value for action in WAITING))).rowcount:
                raise LooplineError(f"no alert {id_} waits: `loopline retrainer status` lists those that do")

    def decide(self, row: AlertRow, decision: RetrainingDecision, look: float, first_step: str) -> None:
        """Store a decision with its consequences: a line for the decision log if the action changed, and a run if it is to retrain.

        look: when to look at the alert again, in seconds since the epoch.
        """
        reasons = json.dumps(decision.reasons)
        with self._transaction() as db:
            update = (decision.action.value, reasons, look, row.id)
            db.execute("UPDATE alerts SET action = ?, reasons = ?, look = ? WHERE id = ?", update)
            if decision.action.value != row.action:
                self._line(db, row.id, row.model, decision.action.value, row.version, reasons)
            if decision.action is Action.RETRAIN:
                self._begin(db, row.id, row.model, row.version, first_step)

    @staticmethod
    def _begin(db: sqlite3.Connection, id_: str, model: str, version: str, first_step: str) -> None:
        values = (id_, model, version, time.time(), first_step)
        db.execute("INSERT INTO runs (id, model, version, started, step) VALUES (?, ?, ?, ?, ?)", values)

    @staticmethod
    def _line(db: sqlite3.Connection, alert: str, model: str, action: str, version: str, reasons: str) -> None:
        values = (alert, model, action, version, reasons)
        db.execute("INSERT INTO decisions (alert, model, action, version, reasons) VALUES (?, ?, ?, ?, ?)", values)

    def unlogged(self) -> list[UnloggedDecision]:
        """Decisions whose line may be missing in the decision log, the oldest first."""
        query = "SELECT id, alert, model, action, version, reasons FROM decisions WHERE NOT logged ORDER BY id"
        return [UnloggedDecision(**row | {"reasons": tuple(json.loads(row["reasons"]))}) for row in self._rows(query)]

    def logged(self, id_: int) -> None:
        """Note that the line of this decision is in the decision log."""
        with self._transaction() as db:
            db.execute("UPDATE decisions SET logged = 1 WHERE id = ?", (id_,))

    # Runs

    def runs(self) -> list[Run]:
        """All runs, the oldest first."""
        return [Run(**row) for row in self._rows("SELECT * FROM runs ORDER BY started, rowid")]

    def run(self, id_: str) -> Run:
        """The run with this id. Raises LooplineError if there is none."""
        match = next((run for run in self.runs() if run.id == id_), None)
        if match is None:
            raise LooplineError(f"there is no run {id_}: `loopline retrainer status` lists the runs")
        return match

    def begin(self, id_: str, model: str, version: str, first_step: str) -> Run:
        """Store a run that no alert started, and return it. version: of the champion, "" without one."""
        with self._transaction() as db:
            self._begin(db, id_, model, version, first_step)
        return self.run(id_)

    def without_alert(self, id_: str, model: str) -> Run | None:
        """The run with this id that no alert started, or None. Raises LooplineError if an alert or another model has the id."""
        run = next((run for run in self.runs() if run.id == id_), None)
        if any(alert.id == id_ for alert in self.alerts()) or (run and run.model != model):
            raise LooplineError(f"{id_} is the id of an alert or of another model's run: choose another one")
        return run

    def under_way(self) -> Run | None:
        """The run of an alert that has not ended, or None."""
        alerts = {alert.id for alert in self.alerts()}
        return next((run for run in self.runs() if run.result is None and run.id in alerts), None)

    def past(self, model: str) -> tuple[Past, ...]:
        """The model's ended runs, the oldest first."""
        return tuple(
            Past(r.started, r.ended or r.started, r.result) for r in self.runs() if r.model == model and r.result
        )

    def step(self, run: str, name: str, pid: int | None = None, created: float | None = None) -> None:
        """Note the run's current step, and its process once it has one."""
        with self._transaction() as db:
            db.execute("UPDATE runs SET step = ?, pid = ?, created = ? WHERE id = ?", (name, pid, created, run))

    def kill(self, run: str) -> None:
        """Note that a step of the run was killed."""
        with self._transaction() as db:
            db.execute("UPDATE runs SET kills = kills + 1 WHERE id = ?", (run,))

    def end(self, run: Run, result: str, reason: str) -> None:
        """End a run. result: succeeded, refused or failed. The reason becomes a line for the decision log."""
        with self._transaction() as db:
            values = (time.time(), result, run.id)
            db.execute("UPDATE runs SET ended = ?, result = ?, pid = NULL WHERE id = ?", values)
            self._line(db, run.id, run.model, f"retrain-{result}", run.version, json.dumps([reason]))

    # What is exported

    def decision_counts(self) -> dict[tuple[str, str], int]:
        """(model, action) -> number of decisions on alerts."""
        rows = self._rows("SELECT model, action, count(*) AS n FROM decisions GROUP BY model, action")
        return {(row["model"], row["action"]): row["n"] for row in rows if not row["action"].startswith("retrain-")}
