"""Take one alert at a time, ask the guard, store the decision and carry out the run. A run that a crash interrupted comes first.

`loopline retrainer run` and the workflow carry out a run without an alert and without a worker, by the same function.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from loopline import settings
from loopline.errors import LooplineError
from loopline.journal import storage
from loopline.journal.reader import JournalReader
from loopline.release import decisions
from loopline.retraining import facts, guard, runs
from loopline.retraining.facts import Sources
from loopline.retraining.guard import Action
from loopline.retraining.policy import RetrainingPolicy, load
from loopline.retraining.run_store import AlertRow, RetrainerStore, Run, UnloggedDecision
from loopline.retraining.runs import Place

LOG = logging.getLogger("loopline.retrainer")
KILL = "LOOPLINE_RETRAINER_PAUSED"
IDLE = 1.0  # seconds between two checks of the state, which other processes may change


@dataclass(frozen=True, kw_only=True)
class Worker:
    """The worker: it handles stored alerts one after the other."""

    store: RetrainerStore
    policy: RetrainingPolicy
    place: Place
    sources: Sources

    def run(self, stop: threading.Event, news: threading.Event) -> None:
        """Work until `stop` is set. news: set when a webhook arrived."""
        while not stop.is_set():
            news.clear()
            try:
                busy = self.work(stop)
            except Exception:  # such as a full disk or a locked file: no alert is lost, so it tries again
                LOG.exception("the worker failed and tries again")
                busy = False
            if not busy:
                news.wait(IDLE)

    def work(self, stop: threading.Event) -> bool:
        """Carry out the run under way, or else decide on one alert. Returns False if there was nothing to do."""
        write_lines(self.store)
        if run := self.store.under_way():
            LOG.info("run %s resumes at step %s", run.id, run.step)
            runs.carry_out(run, self.policy, self.store, self.place, stop)
        elif row := self.store.due():
            self.decide(row)
        else:
            return False
        write_lines(self.store)
        return True

    def decide(self, row: AlertRow) -> None:
        """Ask the guard about this alert, and store its decision."""
        now = time.time()
        past = self.store.past(row.model)
        run = self.store.under_way()
        alert = replace(row.alert, seen=any(run.id == row.id for run in self.store.runs()))
        state = guard.RetrainerState(
            running=run.id if run else None,
            paused=paused(self.store),
            past=past,
            approved=bool(row.approved),
            waited=now - row.received,
        )
        since = max((ended.started for ended in past if ended.result == "succeeded"), default=0.0)
        evidence = facts.gather(row.model, row.version, since, self.sources)
        decision = guard.decide(alert, state, evidence, self.policy, now)
        if decision.action.value != row.action:
            LOG.info("%s: %s: %s", row.id, decision.action, "; ".join(decision.reasons))
        self.store.decide(row, decision, now + self.policy.look_again_seconds, self.policy.steps[0].name)


def run_to_gate(
    model: str, run_id: str, journal: str, policy_file: Path, store: RetrainerStore, stop: threading.Event
) -> Run:
    """Carry out a run of this model that no alert started, from its current step to the gate; return it, with its result if it ended.

    The current folder is the repository. A run that has ended is returned as it is. journal: its folder, or a URL of fsspec.
    Raises LooplineError if model, id, policy or journal is wrong, or if another process carries out runs.
    """
    settings.model(model)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run_id):
        raise LooplineError(f"{run_id!r} is no run's id: use letters, digits, dots, dashes and underscores")
    until_gate = load(policy_file).until_gate()
    with store.at_work():
        run = store.without_alert(run_id, model)
        if run is None or run.result is None:
            folder = storage.local(journal, Path(f".loopline/journal-of-{run_id}")).absolute()
            JournalReader(folder).index.close()  # raises LooplineError if there is no journal
            if run is None:
                champion = facts.registered_champion(model, Path.cwd())
                run = store.begin(run_id, model, champion, until_gate.here[0].name)
            runs.carry_out(run, until_gate, store, Place(Path.cwd(), folder, policy_file), stop)
        write_lines(store)
        return store.run(run_id)


def write_lines(store: RetrainerStore) -> None:
    """Write missing lines to the decision log, each once.

    The log is searched first, because a crash may have come after a line was written and before that was noted.
    """
    lines = store.unlogged()
    if not lines:
        return
    records = decisions.read().records
    written = {record.evidence.get("retrainer") for record in records}
    champions = decisions.champions(records)
    for line in lines:
        if _name(line) not in written:
            champion = champions.get(line.model)
            decisions.append(
                line.model,
                line.action,
                bundle=line.version,
                champion=champion.champion if champion else None,
                reasons=line.reasons,
                evidence={"retrainer": _name(line)},
            )
        store.logged(line.id)


def _name(line: UnloggedDecision) -> str:
    """The unique name of a line in the decision log, in `evidence.retrainer`."""
    return f"{line.alert}/{line.id}"


def paused(store: RetrainerStore) -> str | None:
    """Why no run may start, or None. Set by the environment variable, or by `loopline retrainer pause`."""
    if os.environ.get(KILL):
        return f"{KILL} is set"
    try:
        return (store.folder / "paused").read_text(encoding="utf-8").strip() or "paused"
    except FileNotFoundError:
        return None


def waits(row: AlertRow) -> bool:
    """Tell whether the alert still waits for a final decision."""
    return row.action is None or Action(row.action) not in (Action.DECLINE, Action.RETRAIN)
