"""Runs that could not be sent to the tracking server: they wait in `.loopline/spool` until the server is back.

A run that began on a server is continued there and not duplicated, because a tag holds its id on the server. Sending is therefore
idempotent, and an interrupted call can be repeated.
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
MOST_PARAMS, MOST_POINTS = 100, 1000  # limits of a server for one request


def tags(*, continues: str) -> dict[str, str]:
    """Return the tags of a run of this process in the spool. continues: id of the run on the server; empty if it has none."""
    return {PROCESS: str(os.getpid())} | ({CONTINUES: continues} if continues else {})


def sync() -> list[str]:
    """Send every run of the spool to the configured server; return one line for each run. Runs that fail stay in the spool."""
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
        f"{error}. Runs that were not sent stay in {mlflow_store.SPOOL}: run `loopline track sync` when this is mended"
    )


def send(target: MlflowClient) -> list[str]:
    """Send every run of the spool to `target`, except for trainings that still run; return one line for each run."""
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
    """Delete the files of a run and of its models, which MLflow keeps when the run is deleted."""
    models = [f"models/{output.model_id}" for output in run.outputs.model_outputs] if run.outputs else []
    for name in (run.info.run_id, *models):
        shutil.rmtree(mlflow_store.SPOOL / "artifacts" / name, ignore_errors=True)


def _runs(process: str) -> bool:
    import psutil

    return process.isdigit() and psutil.pid_exists(int(process))


def _counterpart(source: MlflowClient, target: MlflowClient, run: Run, name: str) -> str:
    """Return the id of the server's run that `run` belongs to: the one that it continues, that of its weights, or a new one."""
    from mlflow.exceptions import MlflowException

    experiment = mlflow_store.experiment(target, name)
    if continued := run.data.tags.get(CONTINUES):
        try:
            if target.get_run(continued).info.lifecycle_stage == "active":
                return continued
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    weights = run.data.tags.get("weights_sha256")
    if weights and not run.data.params:  # a run that only `package` wrote
        trained = mlflow_store.find(target, name, tag="weights_sha256", value=weights)
        if trained is not None:
            return str(trained.info.run_id)
    created = target.create_run(experiment, start_time=run.info.start_time, run_name=run.info.run_name).info.run_id
    source.set_tag(run.info.run_id, CONTINUES, created)
    return str(created)


def _copy(source: MlflowClient, target: MlflowClient, run: Run, name: str) -> None:
    """Send one run with its parameters, curves, tags, inputs and files."""
    from mlflow.entities import Param, RunTag

    run_id = run.info.run_id
    copy = _counterpart(source, target, run, name)
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith(("mlflow.", "loopline."))}
    target.log_batch(copy, tags=[RunTag(key, value) for key, value in tags.items()])
    params = [Param(key, value) for key, value in run.data.params.items()]
    for start in range(0, len(params), MOST_PARAMS):
        target.log_batch(copy, params=params[start : start + MOST_PARAMS])
    for metric in run.data.metrics:
        history = source.get_metric_history(run_id, metric)
        for start in range(0, len(history), MOST_POINTS):
            target.log_batch(copy, metrics=history[start : start + MOST_POINTS])
    target.log_inputs(copy, run.inputs.dataset_inputs if run.inputs else None)
    with tempfile.TemporaryDirectory() as folder:
        for item in source.list_artifacts(run_id):
            path = Path(source.download_artifacts(run_id, item.path, folder))
            if path.is_dir():
                target.log_artifacts(copy, str(path), item.path)
            else:
                target.log_artifact(copy, str(path))
        if (Path(folder) / "bundle").is_dir():
            from loopline.release.mlflow_model import log_onnx_model

            log_onnx_model(copy, Path(folder) / "bundle")
    target.set_terminated(copy, run.info.status, run.info.end_time)
