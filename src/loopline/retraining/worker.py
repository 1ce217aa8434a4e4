"""Take one alert at a time, ask the guard, store the decision and carry out the run. A run that a crash interrupted comes first."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass, replace

from loopline.release import decisions
from loopline.retraining import facts, guard, runs
from loopline.retraining.facts import Sources
from loopline.retraining.guard import Action
from loopline.retraining.policy import RetrainingPolicy
from loopline.retraining.run_store import AlertRow, RetrainerStore, UnloggedDecision
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
        self.write_lines()
        if run := self.store.under_way():
            LOG.info("run %s resumes at step %s", run.id, run.step)
            runs.carry_out(run, self.policy, self.store, self.place, stop)
        elif row := self.store.due():
            self.decide(row)
        else:
            return False
        self.write_lines()
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

    def write_lines(self) -> None:
        """Write missing lines to the decision log, each once.

        The log is searched first, because a crash may have come after a line was written and before that was noted.
        """
        lines = self.store.unlogged()
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
            self.store.logged(line.id)


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
