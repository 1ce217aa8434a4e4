"""Play the drill while its processes are killed at random moments, and check that its state is consistent in the end.

Run by `make bench SUITE=kills`. It kills the retrainer, the rollout's controller, the journal's collector and the servers (SIGKILL),
but not the supervisor, which has to restart what is missing. A challenger's death rightly ends in a rollback, so the rollout may end
in promotion or rollback. No decision, run or step may be recorded twice.
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

SPAN = 90.0  # seconds after the drift begins, over which all kills but the last are spread
LATE, LATE_SPAN = 2, 8.0  # number of the last kills, during the rollout, and the most seconds before each of them


class Killer(threading.Thread):
    """Kills processes of a drill. Each kind of process that runs is equally likely."""

    def __init__(self, drill: story.Drill, kills: int, rng: np.random.Generator) -> None:
        """kills: number of processes to kill."""
        super().__init__(daemon=True)
        self.drill, self.rng, self.over = drill, rng, threading.Event()
        self.moments = sorted(drill.record.now() + rng.uniform(0, SPAN) for _ in range(kills - LATE))
        self.killed: Counter[str] = Counter()

    def run(self) -> None:
        """Kill a process at each of the moments, and the last ones after a rollout has begun."""
        for moment in self.moments:
            self.over.wait(max(0.0, moment - self.drill.record.now()))
            self._kill_next()
        while not self.drill.observed.rollout() and not self.over.wait(0.1):
            pass
        for _ in range(LATE):
            self.over.wait(self.rng.uniform(0, LATE_SPAN))
            self._kill_next()

    def _kill_next(self) -> None:
        """Kill a process as soon as there is any."""
        while not self.over.wait(0.1):
            if kind := self._kill():
                self.killed[kind] += 1
                return

    def _kill(self) -> str:
        """Kill a random process and return its kind; empty if there is none."""
        running: dict[str, list[int]] = {}
        for process in processes.running(self.drill.observed.up):
            kind = process.name.partition("-")[0]
            if kind in ("retrainer", "journal", "champion", "challenger", "baseline"):
                running.setdefault(kind, []).append(process.pid)
        for process in psutil.process_iter(["cmdline", "environ"]):
            words = process.info["cmdline"] or []
            of_drill = (process.info["environ"] or {}).get("PYTHONPATH", "").startswith(str(self.drill.folder))
            if of_drill and "rollout" in words and {"start", "resume"} & set(words) and "/bin/sh" not in words:
                running.setdefault("controller", []).append(process.pid)
        if not running:
            return ""
        kind = str(self.rng.choice(sorted(running)))
        pid = int(self.rng.choice(running[kind]))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return ""
        self.drill.record.say("bad", f"{kind} is killed")
        return kind


def play(drill: story.Drill, kills: int, rng: np.random.Generator) -> Counter[str]:
    """Play the drill to the end of its retraining, and return how many processes of each kind were killed."""
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
    drill._until("all processes that should run", lambda: _complete(drill))
    return killer.killed


def _complete(drill: story.Drill) -> bool:
    """Return whether all servers of the fleet run, none of an ended trial does, and no rollout is under way."""
    running = {process.name for process in processes.running(drill.observed.up)}
    fleet = members.read(drill.observed.up)
    servers = {name for name_of_lane, lane in fleet.lanes().items() for name in lane.names(name_of_lane)}
    trial = {name for name in running if name.startswith(("challenger-", "baseline-"))}
    rollout = drill.observed.rollout()
    return (
        not Observer.dead(drill.observed)
        and servers <= running
        and trial <= servers
        and (not rollout or rollout.stage in state.OVER)
    )


def flaws(drill: story.Drill) -> list[str]:
    """Return a sentence for each inconsistency after the drill."""
    sentences = []

    def check(consistent: bool, sentence: str) -> None:
        if not consistent:
            sentences.append(sentence)

    runs, lines = drill.observed.runs(), drill.observed.lines()
    check(len(runs) == 1, f"{len(runs)} runs")
    actions = Counter(line.action for line in lines)
    check(actions["retrain"] == 1, f"{actions['retrain']} decisions to retrain")
    ends = [line for line in lines if line.action.startswith("retrain-")]
    check(
        [line.action for line in ends] == [f"retrain-{run.result}" for run in runs],
        "the log does not have the run's end exactly once",
    )
    names = Counter(line.evidence["retrainer"] for line in lines if "retrainer" in line.evidence)
    check(all(count == 1 for count in names.values()), "a decision is in the log twice")
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
        check(len(steps) == len(set(steps)), f"a rollout's step is in the log twice: {steps}")
        check(
            sum(step.startswith(("promote", "rollback")) for step in steps) == 1,
            f"a rollout does not end exactly once: {steps}",
        )
    champion = drill.champion.version
    if last:
        champion = last.challenger if last.stage == "promoted" else last.champion
        result = {"promoted": "succeeded", "rolled back": "refused"}[last.stage]
        check(runs[0].result == result, f"the rollout is {last.stage}, the run {runs[0].result}")
    served = {Path(folder).name for folder in members.read(drill.observed.up).champion.bundles.values()}
    check(served == {champion}, f"{served} serve, but {champion} should, as the log says")
    check(drill.observed.share() == 0, "a challenger still gets traffic")
    accuracy = drill.world.ask(drill.world.pools.clean[:20])  # type: ignore[union-attr]
    check(accuracy > 0.5, f"the accuracy of the served model is {accuracy:.2f}")
    registered = drill.scratch.run(
        sys.executable, "-c",
        "from loopline.release.registry import HASH; from loopline.release import mlflow_store; "
        f"print(mlflow_store.client().get_model_version_by_alias('{drill.model}', 'champion').tags[HASH])",
    ).split()[-1]  # fmt: skip
    check(registered == champion, f"the registry's champion is {registered}, the served one is {champion}")
    return sentences


def main() -> int:
    """Play the drills and return the exit code: 1 if anything was inconsistent."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--drills", type=int, default=10, help="number of drills")
    parser.add_argument("--kills", type=int, default=5, help=f"number of kills in each drill, at least {LATE}")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first drill")
    parser.add_argument("--results", type=Path, default=Path(".loopline/bench-kills.json"), help="file of all figures")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that `finally` stops the drill
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
