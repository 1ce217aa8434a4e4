"""The retrainer: it takes alerts by webhook, asks the guard, and carries out one retraining at a time.

`webhook` receives alerts, `alerts` authenticates and parses them, `state` stores everything that must survive a crash, `worker`
decides and carries out, `facts` gathers the guard's evidence from Prometheus and the journal, and `runs` executes a run's steps.
`worktree` and `run_report` implement two of these steps.
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
