"""Record a search in MLflow: a parent run, and a child run for each trial. Only the process that searches writes, at the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from loopline.release import mlflow_store, tracking
from loopline.tuning.comparison import Comparison
from loopline.tuning.search import Row, Search

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY = "tune_key"  # tag: of all that decides the table, so that a repeated search is not recorded again
PARENT = "mlflow.parentRunId"
STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def record(search: Search, verdict: Comparison | None, folder: Path) -> None:
    """Write the runs, unless they are there. folder: of the report, which the parent run keeps."""

    def write(store: MlflowClient) -> None:
        if mlflow_store.find(store, search.name, tag=KEY, value=search.key):
            return
        experiment = mlflow_store.experiment(store, search.name)
        tags = {"model": search.name, "git_revision": tracking.revision()}
        parent = str(store.create_run(experiment, run_name=f"tune-{search.name}", tags=tags).info.run_id)
        for row in search.rows:
            _child(store, experiment, parent, row, search.headline)
        if best := search.best():
            store.log_metric(parent, f"val_{search.headline}", best.outcome.value or 0.0)
            for key, value in best.values.items():
                store.log_param(parent, key, value)
        if verdict:
            for name, figure in (("value", verdict.gain.value), ("low", verdict.gain.low), ("high", verdict.gain.high)):
                store.log_metric(parent, f"test.gain_{name}", figure)
        store.log_artifacts(parent, str(folder), "tune")
        store.set_tag(parent, KEY, search.key)  # last: a search that is killed here records itself anew
        store.set_terminated(parent)

    mlflow_store.on_the_store(write)


def _child(store: MlflowClient, experiment: str, parent: str, row: Row, headline: str) -> None:
    from mlflow.entities import Metric, Param

    run = store.create_run(experiment, run_name=f"trial-{row.number}", tags={PARENT: parent}).info.run_id
    now = int(time.time() * 1000)
    points = [Metric(f"val_{headline}", value, now, epoch) for epoch, value in enumerate(row.outcome.curve, 1)]
    params = [Param(key, str(value)) for key, value in row.values.items()]
    store.log_batch(run, params=params, metrics=points)
    if row.outcome.reason:
        store.set_tag(run, "reason", row.outcome.reason)
    store.set_terminated(run, STATUS[row.outcome.state])
