"""Runs that could not be sent to the tracking server: kept in `.loopline/spool`, sent when it is back.

A run that a server had begun is continued there, not doubled: its id on the server stands in a tag. So sending is idempotent, and
what was cut short goes on at the next call.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from loopline.errors import LooplineError
from loopline.release import mlflow_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CONTINUES = "loopline.continues"  # tag: the run's id on the server
PROCESS = "loopline.process"  # tag: the id of the process that trains
MOST_PARAMS, MOST_POINTS = 100, 1000  # a server takes no more in one request


def tags(*, continues: str) -> dict[str, str]:
    """The tags of a run of this process in the spool. continues: its id on the server; empty where it has none."""
    return {PROCESS: str(os.getpid())} | ({CONTINUES: continues} if continues else {})


def sync() -> list[str]:
    """Send every run of the spool to the configured server; returns one line a run. The spool keeps what could not be sent."""
    if not (mlflow_store.SPOOL / "mlflow.db").exists():
        return []
    try:
        target = mlflow_store.client()
        return send(target)
    except mlflow_store.failures() as error:
        raise _waiting(mlflow_store.explain(error, mlflow_store.configured_uri())) from error
    except mlflow_store.StoreError as error:
        raise _waiting(error) from error


def _waiting(error: LooplineError) -> LooplineError:
    return LooplineError(
        f"{error}. What was not sent stays in {mlflow_store.SPOOL}: `loopline track sync` once it is mended"
    )


def send(target: MlflowClient) -> list[str]:
    """Send every run of the spool to `target`, but for trainings that are still running; returns one line a run."""
    from mlflow import MlflowClient

    if not (mlflow_store.SPOOL / "mlflow.db").exists():
        return []
    source, lines = MlflowClient(mlflow_store.spool_uri()), []
    for experiment in source.search_experiments():
        for run in source.search_runs([experiment.experiment_id]):
            if run.info.status == "RUNNING" and _runs(run.data.tags.get(PROCESS, "")):
                continue
            _copy(source, target, run, experiment.name)
            source.delete_run(run.info.run_id)
            _forget_files(run)
            lines.append(f"{experiment.name}: sent run {run.info.run_name}")
    return lines


def _forget_files(run: Run) -> None:
    """MLflow keeps the files of a deleted run and of its models."""
    models = [f"models/{output.model_id}" for output in run.outputs.model_outputs] if run.outputs else []
    for name in (run.info.run_id, *models):
        shutil.rmtree(mlflow_store.SPOOL / "artifacts" / name, ignore_errors=True)


def _runs(process: str) -> bool:
    import psutil

    return process.isdigit() and psutil.pid_exists(int(process))


def _counterpart(source: MlflowClient, target: MlflowClient, run: Run, name: str) -> str:
    """The id of the run on the server that `run` belongs to: the one it continues, that of its weights, or a new one."""
    from mlflow.exceptions import MlflowException

    experiment = mlflow_store.experiment(target, name)
    if begun := run.data.tags.get(CONTINUES):
        try:
            if target.get_run(begun).info.lifecycle_stage == "active":
                return begun
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    weights = run.data.tags.get("weights_sha256")
    if weights and not run.data.params:  # what `package` alone has made
        trained = mlflow_store.find(target, name, tag="weights_sha256", value=weights)
        if trained is not None:
            return str(trained.info.run_id)
    made = target.create_run(experiment, start_time=run.info.start_time, run_name=run.info.run_name).info.run_id
    source.set_tag(run.info.run_id, CONTINUES, made)
    return str(made)


def _copy(source: MlflowClient, target: MlflowClient, run: Run, name: str) -> None:
    """Send one run with its parameters, curves, tags, inputs and files."""
    from mlflow.entities import Param, RunTag

    own = run.info.run_id
    copy = _counterpart(source, target, run, name)
    kept = {key: value for key, value in run.data.tags.items() if not key.startswith(("mlflow.", "loopline."))}
    target.log_batch(copy, tags=[RunTag(key, value) for key, value in kept.items()])
    params = [Param(key, value) for key, value in run.data.params.items()]
    for start in range(0, len(params), MOST_PARAMS):
        target.log_batch(copy, params=params[start : start + MOST_PARAMS])
    for metric in run.data.metrics:
        history = source.get_metric_history(own, metric)
        for start in range(0, len(history), MOST_POINTS):
            target.log_batch(copy, metrics=history[start : start + MOST_POINTS])
    target.log_inputs(copy, run.inputs.dataset_inputs if run.inputs else None)
    with tempfile.TemporaryDirectory() as folder:
        for item in source.list_artifacts(own):
            path = Path(source.download_artifacts(own, item.path, folder))
            if path.is_dir():
                target.log_artifacts(copy, str(path), item.path)
            else:
                target.log_artifact(copy, str(path))
        if (Path(folder) / "bundle").is_dir():
            from loopline.release.mlflow_model import log_onnx_model

            log_onnx_model(copy, Path(folder) / "bundle")
    target.set_terminated(copy, run.info.status, run.info.end_time)
