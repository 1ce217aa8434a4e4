"""The retrainer: alerts come in by webhook, the guard decides, one run at a time makes a challenger with its evidence.

`webhook` listens, `alerts` tells who sent what, `state` is what survives a crash, `worker` decides and carries out, `facts` asks
Prometheus and the journal, `runs` starts a run's steps, `worktree` and `run_report` are two of these.
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
