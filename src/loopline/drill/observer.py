"""Observe the drilled installation: its decision log, runs, rollout, gateway and Prometheus."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from loopline.drill.record import DrillRecord, Figure
from loopline.errors import LooplineError
from loopline.fleet.gateway import Gateway
from loopline.journal import index
from loopline.lib import processes
from loopline.observability import prometheus_api
from loopline.release import decisions
from loopline.retraining import RUNS_FOLDER
from loopline.retraining.run_store import RetrainerStore, Run
from loopline.rollout import state

# DVC's lines that begin or end like this are left out, because they say nothing about the training.
QUIET = (
    "$ ",
    "> ",
    "Updating lock file",
    "Use `dvc push`",
    "To track",
    "git add",
    "To enable auto staging",
    "dvc config",
)
SKIPPED = "didn't change, skipping"
DRIFT_ALERTS = "DriftNotice|DriftWarning|RetrainCandidate"
PERMANENT = {
    "gateway",
    "journal",
    "prometheus",
    "alertmanager",
    "retrainer",
}  # processes that must run during the whole drill


class Observer:
    """An observer of the installation in `folder`. It writes into the record."""

    def __init__(self, folder: Path, model: str, record: DrillRecord) -> None:
        """Create the observer; it reads nothing until a method is called."""
        self.folder, self.model, self.record = folder, model, record
        self.up = folder / ".loopline/up"
        self.lines_told, self.step, self.rollouts = 0, "", 0
        self.bytes_read = 0  # of the training's log
        self.over = threading.Event()
        self.watcher = threading.Thread(daemon=True)

    def watch(self, prometheus: str) -> None:
        """Start to record figures twice a second. prometheus: its URL."""
        self.watcher = threading.Thread(target=self._figures, args=(prometheus,), daemon=True)
        self.watcher.start()

    def close(self) -> None:
        """Stop recording figures."""
        self.over.set()
        if self.watcher.ident:
            self.watcher.join()

    def dead(self) -> str:
        """The names of permanent processes that do not run; empty if all do."""
        running = {process.name for process in processes.running(self.up)}
        return ", ".join(sorted(PERMANENT - running))

    def firing(self) -> tuple[str, ...]:
        """The names of the drift alerts that fire."""
        return self.record.figures[-1].firing if self.record.figures else ()

    def share(self) -> int:
        """The challenger's share of the traffic in percent, read from the gateway."""
        return Gateway(self.up).shared().get(self.model, 0)

    def lines(self) -> tuple[decisions.DecisionRecord, ...]:
        """The decision log."""
        return decisions.read(self.folder / "decisions/log.jsonl").records

    def decided(self, action: str) -> decisions.DecisionRecord | None:
        """The first decision with this action, apart from the promotion of the first champion; None if there is none."""
        return next((line for line in self.lines()[1:] if line.action == action), None)

    def kept(self, ids: Collection[str]) -> set[str]:
        """The ids among these that the journal has. Empty while its index cannot be read, since the caller asks again."""
        if not ids:
            return set()
        try:
            with closing(index.connect(self.folder / ".loopline/journal")) as connection:
                rows = connection.execute(
                    "SELECT id FROM entry WHERE model = ? AND id IN (SELECT value FROM json_each(?))",
                    (self.model, json.dumps(list(ids))),
                )
                return {row["id"] for row in rows}
        except (LooplineError, sqlite3.Error):
            return set()

    def runs(self) -> list[Run]:
        """The retrainer's runs."""
        folder = self.folder / ".loopline/retrainer"
        if not (folder / "state.db").exists():
            return []
        store = RetrainerStore(folder)
        try:
            return store.runs()
        finally:
            store.close()

    def rollout(self) -> state.RolloutState | None:
        """The latest rollout, or None."""
        return state.read(self.folder / state.FOLDER)

    def stage(self) -> str:
        """The stage of the latest rollout; empty if there is none."""
        rollout = self.rollout()
        return rollout.stage if rollout else ""

    def ended(self) -> state.RolloutState | None:
        """The latest rollout if it has ended, else None."""
        rollout = self.rollout()
        return rollout if rollout and rollout.stage in state.OVER else None

    def relay(self) -> None:
        """Record new decisions and new steps of the run."""
        lines = self.lines()
        for line in lines[self.lines_told :]:
            self.rollouts += line.action == "shadow"  # the canary begins after it
            short = "canary" if line.action == "shadow" and self.rollouts == 1 else ""
            self.record.say("decision", f"{line.action}: " + "\n".join(line.reasons), short)
        self.lines_told = len(lines)
        for run in self.runs()[:1]:
            if run.step and run.step != self.step and not run.result:
                self.step = run.step
                self.record.say("note", f"retraining, step {run.step}")
            self._training(run)

    def _training(self, run: Run) -> None:
        """Record the new complete lines of the training's log."""
        log = self.folder / RUNS_FOLDER / run.id / "train.log"
        if not log.exists():
            return
        with log.open("rb") as file:
            file.seek(self.bytes_read)
            lines = file.read().rpartition(b"\n")[0]
        self.bytes_read += len(lines) + bool(lines)
        for line in map(str.strip, lines.decode("utf-8", "replace").splitlines()):
            if line and not line.startswith(QUIET) and not line.endswith(SKIPPED):
                self.record.say("note", f"  {line[:150]}")

    def _figures(self, prometheus: str) -> None:
        while not self.over.wait(0.5):
            try:
                scores = prometheus_api.instant(prometheus, "loopline:drift_score")
                firing = prometheus_api.instant(
                    prometheus, f'ALERTS{{alertstate="firing",alertname=~"{DRIFT_ALERTS}"}}'
                )
                share = self.share()
            except LooplineError:  # such as a Prometheus that is shutting down; `dead` detects one that should run
                continue
            score = {series.labels["version"]: round(series.value, 4) for series in scores}
            names = tuple(sorted({series.labels["alertname"] for series in firing}))
            self.record.figures.append(Figure(self.record.now(), score, share, names))
