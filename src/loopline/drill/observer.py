"""What the drilled house says of itself: its decision log, its runs, its rollout, its gateway, its Prometheus."""

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
from loopline.retraining.state import RetrainerStore, Run
from loopline.rollout import state

# Beginnings and an end of DVC's lines that tell nothing of a training.
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
WANTED = {"gateway", "journal", "prometheus", "alertmanager", "retrainer"}  # processes that stay all the time


class Observer:
    """Of the house in `folder`. What it sees goes into the record."""

    def __init__(self, folder: Path, model: str, record: DrillRecord) -> None:
        """Nothing is looked at before it is asked, or `watch` is called."""
        self.folder, self.model, self.record = folder, model, record
        self.up = folder / ".loopline/up"
        self.told, self.step, self.rollouts = 0, "", 0
        self.read = 0  # bytes of the training's log
        self.over = threading.Event()
        self.watcher = threading.Thread(daemon=True)

    def watch(self, prometheus: str) -> None:
        """From now on figures go into the record, twice a second. prometheus: its address."""
        self.watcher = threading.Thread(target=self._figures, args=(prometheus,), daemon=True)
        self.watcher.start()

    def close(self) -> None:
        """No more figures."""
        self.over.set()
        if self.watcher.ident:
            self.watcher.join()

    def dead(self) -> str:
        """The name of a process that should be there; empty if all are."""
        there = {process.name for process in processes.running(self.up)}
        return ", ".join(sorted(WANTED - there))

    def firing(self) -> tuple[str, ...]:
        """The drift alerts that fire."""
        return self.record.figures[-1].firing if self.record.figures else ()

    def share(self) -> int:
        """Of the challenger, in percent, as the gateway itself has it."""
        return Gateway(self.up).shared().get(self.model, 0)

    def lines(self) -> tuple[decisions.DecisionRecord, ...]:
        """The decision log."""
        return decisions.read(self.folder / "decisions/log.jsonl").records

    def decided(self, action: str) -> decisions.DecisionRecord | None:
        """The first decision of that kind after the first champion's."""
        return next((line for line in self.lines()[1:] if line.action == action), None)

    def kept(self, ids: Collection[str]) -> set[str]:
        """Those of these requests that the journal has; none while its index cannot be read, for it is asked again."""
        if not ids:
            return set()
        try:
            with closing(index.connect(self.folder / ".loopline/journal")) as found:
                rows = found.execute(
                    "SELECT id FROM entry WHERE model = ? AND id IN (SELECT value FROM json_each(?))",
                    (self.model, json.dumps(list(ids))),
                )
                return {row["id"] for row in rows}
        except (LooplineError, sqlite3.Error):
            return set()

    def runs(self) -> list[Run]:
        """The retrainer's."""
        folder = self.folder / ".loopline/retrainer"
        if not (folder / "state.db").exists():
            return []
        store = RetrainerStore(folder)
        try:
            return store.runs()
        finally:
            store.close()

    def rollout(self) -> state.RolloutState | None:
        """The latest one."""
        return state.read(self.folder / state.FOLDER)

    def stage(self) -> str:
        """Of the latest rollout."""
        found = self.rollout()
        return found.stage if found else ""

    def ended(self) -> state.RolloutState | None:
        """The latest rollout, if it is over."""
        found = self.rollout()
        return found if found and found.stage in state.OVER else None

    def relay(self) -> None:
        """Tell what is new in the log and in the run's steps."""
        lines = self.lines()
        for line in lines[self.told :]:
            self.rollouts += line.action == "shadow"  # after which its canary begins
            short = "canary" if line.action == "shadow" and self.rollouts == 1 else ""
            self.record.say("decision", f"{line.action}: " + "\n".join(line.reasons), short)
        self.told = len(lines)
        for run in self.runs()[:1]:
            if run.step and run.step != self.step and not run.result:
                self.step = run.step
                self.record.say("note", f"retraining, step {run.step}")
            self._training(run)

    def _training(self, run: Run) -> None:
        """Tell the new lines of the training's log: its stages and what they say."""
        log = self.folder / RUNS_FOLDER / run.id / "train.log"
        if not log.exists():
            return
        with log.open("rb") as file:
            file.seek(self.read)
            whole = file.read().rpartition(b"\n")[0]
        self.read += len(whole) + bool(whole)
        for line in map(str.strip, whole.decode("utf-8", "replace").splitlines()):
            if line and not line.startswith(QUIET) and not line.endswith(SKIPPED):
                self.record.say("note", f"  {line[:150]}")

    def _figures(self, prometheus: str) -> None:
        while not self.over.wait(0.5):
            try:
                found = prometheus_api.instant(prometheus, "loopline:drift_score")
                firing = prometheus_api.instant(
                    prometheus, f'ALERTS{{alertstate="firing",alertname=~"{DRIFT_ALERTS}"}}'
                )
                share = self.share()
            except LooplineError:  # it is being ended; whether it should be there, `dead` says
                continue
            score = {series.labels["version"]: round(series.value, 4) for series in found}
            names = tuple(sorted({series.labels["alertname"] for series in firing}))
            self.record.figures.append(Figure(self.record.now(), score, share, names))
