"""Takes one alert at a time, asks the guard, writes the decision down, carries out the run. What a crash broke off goes on first."""

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
from loopline.retraining.runs import Place
from loopline.retraining.state import AlertRow, RetrainerStore, UnloggedDecision

LOG = logging.getLogger("loopline.retrainer")
KILL = "LOOPLINE_RETRAINER_PAUSED"
IDLE = 1.0  # seconds between two looks for what other processes approved


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What works off the inbox."""

    store: RetrainerStore
    policy: RetrainingPolicy
    place: Place
    sources: Sources

    def run(self, stop: threading.Event, news: threading.Event) -> None:
        """Until `stop`. news: set when a webhook came."""
        while not stop.is_set():
            news.clear()
            try:
                busy = self.work(stop)
            except Exception:  # a full disk, a locked file: it is tried again, for nothing is lost
                LOG.exception("it did not work, the next try follows")
                busy = False
            if not busy:
                news.wait(IDLE)

    def work(self, stop: threading.Event) -> bool:
        """Do one thing: a run, or a decision; False where there is nothing to do."""
        self.write_lines()
        if run := self.store.under_way():
            LOG.info("run %s goes on at step %s", run.id, run.step)
            runs.carry_out(run, self.policy, self.store, self.place, stop)
        elif row := self.store.due():
            self.decide(row)
        else:
            return False
        self.write_lines()
        return True

    def decide(self, row: AlertRow) -> None:
        """Ask the guard about this alert, and keep what it says."""
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
        since = max((one.started for one in past if one.result == "succeeded"), default=0.0)
        found = facts.gather(row.model, row.version, since, self.sources)
        decision = guard.decide(alert, state, found, self.policy, now)
        if decision.action.value != row.action:
            LOG.info("%s: %s: %s", row.id, decision.action, "; ".join(decision.reasons))
        self.store.decide(row, decision, now + self.policy.look_again_seconds, self.policy.steps[0].name)

    def write_lines(self) -> None:
        """Bring the decision log up to date: each line once, also where we died between the line and the note of it."""
        lines = self.store.unlogged()
        if not lines:
            return
        known = decisions.read().records
        there = {record.evidence.get("retrainer") for record in known}
        champions = decisions.champions(known)
        for line in lines:
            if _name(line) not in there:
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
    """What tells this line from all others: `evidence.retrainer`."""
    return f"{line.alert}/{line.id}"


def paused(store: RetrainerStore) -> str | None:
    """Why nothing may start: the environment's kill switch, or that of `loopline retrainer pause`."""
    if os.environ.get(KILL):
        return f"{KILL} is set"
    try:
        return (store.folder / "paused").read_text(encoding="utf-8").strip() or "paused"
    except FileNotFoundError:
        return None


def waits(row: AlertRow) -> bool:
    """Is it still open?"""
    return row.action is None or Action(row.action) not in (Action.DECLINE, Action.RETRAIN)
