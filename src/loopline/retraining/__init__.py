"""The retrainer: it takes alerts by webhook, asks the guard, and carries out one retraining at a time.

`webhook` receives alerts, `alerts` authenticates and parses them, `run_store` stores everything that must survive a crash.
`worker` asks the `guard`, whose evidence `facts` gathers from Prometheus and the journal, and has `runs` execute a run's steps.
`policy` reads monitoring/retraining.yaml, which lists these steps; `worktree` and `run_report`, the gate, implement two of them.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(".loopline/retrainer")
RUNS_FOLDER = FOLDER / "runs"  # RUN/STEP.log
DECISIONS, RUNS, RUNNING = "loopline_retrain_decisions", "loopline_retrain_runs", "loopline_retrain_running"
RESULTS = ("succeeded", "refused", "failed")
METRICS = {  # name -> help, labels
    f"{DECISIONS}_total": ("Decisions on alerts.", ("model", "decision")),
    f"{RUNS}_total": ("Runs that ended, by result: succeeded, refused or failed.", ("model", "result")),
    RUNNING: ("1 while a run is under way.", ()),
}
