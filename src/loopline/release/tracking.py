"""Tracking in MLflow: one run for each training, identified by the hash of its weights, so that no output holds a run id.

A lost server never ends a training: if the server is away at the start or stops answering later, the run goes on in a local store
under `.loopline/spool`. When the server is back, `package` or `loopline track sync` sends the runs that wait there.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopline.release import mlflow_store, spool

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

SYSTEM_SECONDS = 5  # between two points of the curves of system metrics


def revision() -> str:
    """Return the git revision, with `-dirty` if tracked files differ from it; `none` outside git."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return "none"


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, str(tree)


class Training:
    """The run of one training, opened before the first epoch and closed with the hash of the trained weights.

    Opening it raises StoreError if the user must mend something. It raises nothing afterwards.
    """

    def __init__(self, name: str, *, parameters: dict[str, Any], dataset: str, data_sha256: str) -> None:
        """Start a run in experiment `name` with its parameters, its data set as an input and tags on the machine."""
        self._name, self._dataset, self._data_sha256 = name, dataset, data_sha256
        self._parameters = dict(_flat(parameters))
        self._tags = {"model": name, "data_sha256": data_sha256, "git_revision": revision(), **_machine()}
        self._curves: list[Metric] = []  # sent again if the spool takes over
        self._lock = threading.Lock()
        self.id = ""
        self._store: MlflowClient | None = mlflow_store.on_the_store(self._open)
        self._system = _system_metrics(self.id, self._send_metrics)
        self._system.start()

    def _open(self, store: MlflowClient) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        tags = self._tags | spool.tags(continues=self.id) if mlflow_store.is_spool(store) else self._tags
        run_name = f"{self._name}-{self._dataset.rstrip('/').rsplit('/', 1)[-1]}"
        run = store.create_run(mlflow_store.experiment(store, self._name), run_name=run_name, tags=tags)
        self.id = str(run.info.run_id)
        params = [Param(key, value) for key, value in self._parameters.items()]
        store.log_batch(self.id, params=params, metrics=self._curves)
        source = Dataset(self._dataset, self._data_sha256[:36], "local", f'{{"dataset": "{self._dataset}"}}')
        store.log_inputs(self.id, [DatasetInput(source, [InputTag("mlflow.data.context", "training")])])

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """Add one point to each curve."""
        self._curves += (points := _points(metrics, epoch))
        self._send(lambda store, run_id: store.log_batch(run_id, metrics=points))

    def _send_metrics(self, metrics: dict[str, float], step: int) -> None:
        points = _points(metrics, step)
        self._send(lambda store, run_id: store.log_batch(run_id, metrics=points))

    def finish(self, weights_sha256: str) -> None:
        """Close the run and tag it with the hash of its weights."""
        self._system.finish()
        self._send(lambda store, run_id: store.set_tag(run_id, "weights_sha256", weights_sha256))
        self._send(lambda store, run_id: store.set_terminated(run_id))

    def fail(self) -> None:
        """Close the run as failed."""
        self._system.finish()
        self._send(lambda store, run_id: store.set_terminated(run_id, "FAILED"))

    def _send(self, action: Callable[[MlflowClient, str], object]) -> None:
        """Run `action` on the run. If the store fails, continue the run in the spool, now and from then on."""
        with self._lock:
            if self._store is None:
                return
            try:
                action(self._store, self.id)
            except Exception as error:  # the training goes on after any error
                reason = mlflow_store.explain(error, self._store.tracking_uri)
            else:
                return
            try:  # outside the handler, or the server's failure would become the cause of the spool's
                if mlflow_store.is_spool(self._store):
                    raise reason
                self._store = mlflow_store.open_spool()
                self._open(self._store)
                action(self._store, self.id)
                _say(f"{reason}. The training goes on, {mlflow_store.LATER}")
            except Exception as failure:  # e.g. a full disk
                self._store = None
                _say(f"{reason}. The training goes on without a record: {mlflow_store.SPOOL} fails too ({failure})")


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - a stage's line


def _points(metrics: dict[str, float], step: int) -> list[Metric]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name, value, now, step) for name, value in metrics.items()]


def _system_metrics(run_id: str, log: Callable[[dict[str, float], int], None]) -> Any:
    """Return MLflow's monitor of the machine, changed to send its points through `log` and not through a client of its own."""
    from mlflow.system_metrics import system_metrics_monitor

    base: Any = system_metrics_monitor.SystemMetricsMonitor  # MLflow has no types here

    class Monitor(base):  # type: ignore[misc]
        def monitor(self) -> None:
            step = 0
            while not self._shutdown_event.wait(self.sampling_interval):
                self.collect_metrics()
                log({f"system/{name}": value for name, value in self.aggregate_metrics().items()}, step)
                step += 1
                for part in self.monitors:
                    part.clear_metrics()

    monitor: Any = Monitor
    return monitor(run_id, sampling_interval=SYSTEM_SECONDS, samples_before_logging=1)


def _machine() -> dict[str, str]:
    from loopline.lib.machine import cpu_features, cpu_name

    return {
        "machine.cpu": cpu_name(),
        "machine.cores": str(os.cpu_count()),
        "machine.features": " ".join(cpu_features()),
        "machine.python": platform.python_version(),
        "machine.system": platform.platform(),
    }


def package(
    name: str,
    *,
    weights_sha256: str,
    bundle: Path,
    bundle_version: str,
    metrics: dict[str, float],
    pictures: list[Path],
    reports: list[Path],
) -> None:
    """Add the evidence to the training's run: test metrics, plots, reports, the bundle and the ONNX model with its signature.

    A training that was pulled from a DVC cache has no run here, so one is created. Runs that wait in the spool are sent first.
    Raises StoreError if the user must mend something.
    """
    from loopline.release.mlflow_model import log_onnx_model

    def add(store: MlflowClient) -> None:
        if not mlflow_store.is_spool(store):
            for line in spool.send(store):
                _say(line)
        experiment = mlflow_store.experiment(store, name)
        run = mlflow_store.find(store, name, tag="weights_sha256", value=weights_sha256)
        if run is None:
            tags = {"model": name, "weights_sha256": weights_sha256}
            run = store.create_run(experiment, run_name=f"{name}-restored", tags=tags)
        run_id = run.info.run_id
        test_metrics = {f"test.{key}": value for key, value in metrics.items() if not math.isnan(value)}
        store.log_batch(run_id, metrics=_points(test_metrics, 0))
        for picture in pictures:
            store.log_artifact(run_id, str(picture), "plots")
        for report in reports:
            store.log_artifact(run_id, str(report), "reports")
        store.log_artifacts(run_id, str(bundle), "bundle")
        log_onnx_model(run_id, bundle)
        store.set_tag(run_id, "bundle_sha256", bundle_version)
        store.set_tag(run_id, "git_revision", revision())
        store.set_terminated(run_id)

    mlflow_store.on_the_store(add)
