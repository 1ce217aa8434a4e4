"""`make bench SUITE=kills`: plays the drill while something of it is killed at random moments, and looks whether all is consistent.

The retrainer, the rollout's controller, the journal's collector and the servers are killed (SIGKILL). The supervisor is not: it has
to bring back what is missing. A challenger's death rightly ends in a rollback, so both ends of the story are fine; nothing may be
there twice.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from loopline.drill import story
from loopline.drill.observer import Observer
from loopline.errors import LooplineError
from loopline.fleet import members
from loopline.lib import processes
from loopline.rollout import state

SPAN = 90.0  # seconds from the drift on, in which all but the last kills are spread
LATE, LATE_SPAN = 2, 8.0  # kills while the rollout is under way, each within so many seconds


class Killer(threading.Thread):
    """Kills so many processes of a drilled house, each kind that is there as often as the others."""

    def __init__(self, drill: story.Drill, kills: int, rng: np.random.Generator) -> None:
        super().__init__(daemon=True)
        self.drill, self.rng, self.over = drill, rng, threading.Event()
        self.moments = sorted(drill.record.now() + rng.uniform(0, SPAN) for _ in range(kills - LATE))
        self.killed: Counter[str] = Counter()

    def run(self) -> None:
        """At each moment the next that can be killed; the last ones once a rollout has begun."""
        for moment in self.moments:
            self.over.wait(max(0.0, moment - self.drill.record.now()))
            self._one()
        while not self.drill.observed.rollout() and not self.over.wait(0.1):
            pass
        for _ in range(LATE):
            self.over.wait(self.rng.uniform(0, LATE_SPAN))
            self._one()

    def _one(self) -> None:
        while not self.over.wait(0.1):
            if kind := self._kill():
                self.killed[kind] += 1
                return

    def _kill(self) -> str:
        there: dict[str, list[int]] = {}
        for process in processes.running(self.drill.observed.up):
            kind = process.name.partition("-")[0]
            if kind in ("retrainer", "journal", "champion", "challenger", "baseline"):
                there.setdefault(kind, []).append(process.pid)
        for process in psutil.process_iter(["cmdline", "environ"]):
            words = process.info["cmdline"] or []
            ours = (process.info["environ"] or {}).get("PYTHONPATH", "").startswith(str(self.drill.folder))
            if ours and "rollout" in words and {"start", "resume"} & set(words) and "/bin/sh" not in words:
                there.setdefault("controller", []).append(process.pid)
        if not there:
            return ""
        kind = str(self.rng.choice(sorted(there)))
        pid = int(self.rng.choice(there[kind]))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return ""
        self.drill.record.say("bad", f"{kind} is killed")
        return kind


def play(drill: story.Drill, kills: int, rng: np.random.Generator) -> Counter[str]:
    """The drill up to the end of the one retraining; returns what was killed."""
    drill.the_champion_serves()
    drill.clean_traffic_is_quiet()
    drill.observed.dead = lambda: ""  # type: ignore[method-assign]
    world = drill.world
    assert world is not None
    killer = Killer(drill, kills, rng)
    killer.start()
    world.drifted = True
    drill._until("the retrainer asks for labels", lambda: drill.observed.decided("ask-labels"))
    world.labelling = True
    drill._until("the decision to retrain", lambda: drill.observed.decided("retrain"))
    drill._until("the run's end", lambda: [run for run in drill.observed.runs() if run.result], 4 * story.PATIENCE)
    killer.over.set()
    killer.join()
    drill._until("all that should be there", lambda: _complete(drill))
    return killer.killed


def _complete(drill: story.Drill) -> bool:
    there = {process.name for process in processes.running(drill.observed.up)}
    wanted = members.read(drill.observed.up)
    servers = {name for lane, of in wanted.lanes().items() for name in of.names(lane)}
    trial = {name for name in there if name.startswith(("challenger-", "baseline-"))}
    found = drill.observed.rollout()
    return (
        not Observer.dead(drill.observed)
        and servers <= there
        and trial <= servers
        and (not found or found.stage in state.OVER)
    )


def flaws(drill: story.Drill) -> list[str]:
    """What is not consistent."""
    found = []

    def check(fine: bool, text: str) -> None:
        if not fine:
            found.append(text)

    runs, lines = drill.observed.runs(), drill.observed.lines()
    check(len(runs) == 1, f"{len(runs)} runs")
    actions = Counter(line.action for line in lines)
    check(actions["retrain"] == 1, f"{actions['retrain']} decisions to retrain")
    ends = [line for line in lines if line.action.startswith("retrain-")]
    check(
        [line.action for line in ends] == [f"retrain-{run.result}" for run in runs],
        "the run's end is not in the log once",
    )
    names = Counter(line.evidence["retrainer"] for line in lines if "retrainer" in line.evidence)
    check(all(count == 1 for count in names.values()), "a decision stands twice in the log")
    with sqlite3.connect(drill.folder / ".loopline/retrainer/state.db") as db:
        check(db.execute("PRAGMA integrity_check").fetchone()[0] == "ok", "the retrainer's state is damaged")
        kept = {f"{alert}/{number}" for number, alert in db.execute("SELECT id, alert FROM decisions")}
    check(kept == set(names), f"decisions that are not in the log: {kept - set(names)}")
    last = drill.observed.rollout()
    by_rollout: dict[str, list[str]] = {}
    for line in lines:
        if "rollout" in line.evidence:
            by_rollout.setdefault(line.evidence["rollout"], []).append(f"{line.action} {line.evidence['step']}")
    for steps in by_rollout.values():
        check(len(steps) == len(set(steps)), f"a rollout's step stands twice: {steps}")
        check(sum(step.startswith(("promote", "rollback")) for step in steps) == 1, f"not one end: {steps}")
    champion = drill.champion.version
    if last:
        champion = last.challenger if last.stage == "promoted" else last.champion
        result = {"promoted": "succeeded", "rolled back": "refused"}[last.stage]
        check(runs[0].result == result, f"the rollout is {last.stage}, the run {runs[0].result}")
    served = {Path(folder).name for folder in members.read(drill.observed.up).champion.bundles.values()}
    check(served == {champion}, f"{served} should serve, the log says {champion}")
    check(drill.observed.share() == 0, "a challenger still has traffic")
    asked = drill.world.ask(drill.world.pools.clean[:20])  # type: ignore[union-attr]
    check(asked > 0.5, f"what serves answers with accuracy {asked:.2f}")
    registered = drill.scratch.run(
        sys.executable, "-c",
        "from loopline.release.registry import HASH; from loopline.release import mlflow_store; "
        f"print(mlflow_store.client().get_model_version_by_alias('{drill.model}', 'champion').tags[HASH])",
    ).split()[-1]  # fmt: skip
    check(registered == champion, f"the registry's champion is {registered}, what serves is {champion}")
    return found


def main() -> int:
    """Returns the exit code: 1 if anything was inconsistent."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--drills", type=int, default=10)
    parser.add_argument("--kills", type=int, default=5, help=f"in each drill, at least {LATE}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path(".loopline/bench-kills.json"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # it cleans up after itself
    rows: list[dict[str, Any]] = []
    for number in range(options.drills):
        drill = story.Drill(Path.cwd(), Path(".loopline/kills"), story.FAST)
        try:
            killed = play(drill, options.kills, np.random.default_rng(options.seed + number))
            wrong = flaws(drill)
        except LooplineError as error:
            killed, wrong = Counter(), [str(error)]
        finally:
            last = drill.observed.rollout()
            drill.close()
        rows.append({"killed": killed, "end": last.stage if last else "no rollout", "flaws": wrong})
        print(f"\n{number + 1} of {options.drills}: {dict(killed)}, {rows[-1]['end']}: {wrong or 'consistent'}\n")
        options.results.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    total: Counter[str] = sum((row["killed"] for row in rows), Counter())
    print(
        f"{sum(total.values())} kills ({dict(total)}), {sum(bool(row['flaws']) for row in rows)} of {len(rows)} drills inconsistent"
    )
    return 1 if any(row["flaws"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
