"""MLflow: a run a training, found again by the hash of its weights, so that no run id stands in any output.

SQLite in `mlflow.db` by default, a server where `MLFLOW_TRACKING_URI` says so. If the server is away, the run goes to a local
store under `.loopline/spool` and `loopline track sync` sends it later: a lost server never costs a training.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopline.errors import LooplineError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT_URI = "sqlite:///mlflow.db"
SPOOL = Path(".loopline/spool")
PROBE_SECONDS = 3


def configured_uri() -> str:
    """The store that the user wants: `MLFLOW_TRACKING_URI`, or the local SQLite file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def _away(uri: str) -> str | None:
    """Why the tracking server does not answer; None where it does, or where there is no server to ask."""
    if not uri.startswith(("http://", "https://")):
        return None
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=PROBE_SECONDS):  # noqa: S310 - http(s) only, see above
            return None
    except urllib.error.HTTPError as error:
        return None if error.code < 500 else str(error)  # an old server without /health is still there
    except OSError as error:
        return str(getattr(error, "reason", error))


def _spool_uri() -> str:
    SPOOL.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{SPOOL}/mlflow.db"


def client(*, spool: bool = True) -> MlflowClient:
    """A client of the configured store, or of the spool where the server is away (said on standard error).

    spool: False where the local store is no help, as for the registry; then LooplineError is raised.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    uri = configured_uri()
    if reason := _away(uri):
        if not spool:
            raise LooplineError(
                f"tracking server {uri} is away ({reason}), and the model registry with it: try again later"
            )
        print(f"tracking server {uri} is away ({reason}): the run is kept in {SPOOL}; "  # noqa: T201
              "send it later with `loopline track sync`", file=sys.stderr)  # fmt: skip
        uri = _spool_uri()
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    _use(uri)
    return mlflow.MlflowClient(uri)


def _use(uri: str) -> None:
    """Make `uri` MLflow's current store. It would leave its mark in the environment, where the user's own choice must stay."""
    import mlflow

    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    if chosen is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = chosen


def _experiment(store: MlflowClient, name: str) -> str:
    found = store.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = (SPOOL / "artifacts").resolve().as_uri() if str(SPOOL) in store.tracking_uri else None
    training = {
        "mlflow.experimentKind": "custom_model_development"
    }  # without it the page opens on language models' traces
    return str(store.create_experiment(name, artifact_location=location, tags=training))


def revision() -> str:
    """The git revision, with `-dirty` where tracked files differ from it; `none` outside git."""
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
    """The run of one training: opened before the first epoch, closed with the hash of the weights that came out."""

    def __init__(self, name: str, *, parameters: dict[str, Any], dataset: str, data_sha256: str) -> None:
        """Start a run in experiment `name` with its parameters, its data set as an input and a word on the machine."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        self._store = client()
        self._experiment = _experiment(self._store, name)
        tags = {"model": name, "data_sha256": data_sha256, "git_revision": revision(), **_machine()}
        run = self._store.create_run(
            self._experiment, run_name=f"{name}-{dataset.rstrip('/').rsplit('/', 1)[-1]}", tags=tags
        )
        self.id: str = run.info.run_id
        self._store.log_batch(self.id, params=[Param(key, value) for key, value in _flat(parameters)])
        source = Dataset(dataset, data_sha256[:36], "local", f'{{"dataset": "{dataset}"}}')
        self._store.log_inputs(self.id, [DatasetInput(source, [InputTag("mlflow.data.context", "training")])])
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor: Any = SystemMetricsMonitor  # MLflow has no types here
        self._monitor = monitor(
            self.id, sampling_interval=5, samples_before_logging=1, tracking_uri=self._store.tracking_uri
        )
        self._monitor.start()

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """One point of every curve."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._store.log_batch(self.id, metrics=[Metric(name, value, now, epoch) for name, value in metrics.items()])

    def finish(self, weights_sha256: str) -> None:
        """Close the run under the hash of its weights."""
        self._monitor.finish()
        self._store.set_tag(self.id, "weights_sha256", weights_sha256)
        self._store.set_terminated(self.id)

    def fail(self) -> None:
        """Close the run as failed."""
        self._monitor.finish()
        self._store.set_terminated(self.id, "FAILED")


def _machine() -> dict[str, str]:
    from loopline.training.hardware import cpu_features, cpu_name

    return {
        "machine.cpu": cpu_name(),
        "machine.cores": str(os.cpu_count()),
        "machine.features": " ".join(cpu_features()),
        "machine.python": platform.python_version(),
        "machine.system": platform.platform(),
    }


def find(store: MlflowClient, name: str, *, tag: str, value: str) -> Run | None:
    """The latest run of experiment `name` with that tag."""
    experiment = store.get_experiment_by_name(name)
    if experiment is None:
        return None
    runs = store.search_runs([experiment.experiment_id], f"tags.{tag} = '{value}'", max_results=1)
    return runs[0] if runs else None


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

    A training that was pulled from a DVC cache has no run here: one is made for it.
    """
    import time

    from mlflow.entities import Metric

    from loopline.training.onnx_model import log_onnx_model

    store = client()
    run = find(store, name, tag="weights_sha256", value=weights_sha256)
    if run is None:
        run = store.create_run(
            _experiment(store, name),
            run_name=f"{name}-restored",
            tags={"model": name, "weights_sha256": weights_sha256},
        )
    run_id = run.info.run_id
    now = int(time.time() * 1000)
    store.log_batch(
        run_id,
        metrics=[Metric(f"test.{key}", value, now, 0) for key, value in metrics.items() if not math.isnan(value)],
    )
    for picture in pictures:
        store.log_artifact(run_id, str(picture), "plots")
    for report in reports:
        store.log_artifact(run_id, str(report), "reports")
    store.log_artifacts(run_id, str(bundle), "bundle")
    log_onnx_model(run_id, bundle)
    store.set_tag(run_id, "bundle_sha256", bundle_version)
    store.set_tag(run_id, "git_revision", revision())
    store.set_terminated(run_id)


def sync() -> list[str]:
    """Send every run of the spool to the configured server; returns one line a run. The spool keeps what could not be sent."""
    uri = configured_uri()
    if reason := _away(uri):
        raise LooplineError(
            f"tracking server {uri} is still away ({reason}): nothing was sent, the runs stay in {SPOOL}"
        )
    if not (SPOOL / "mlflow.db").exists():
        return []
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    source, target = MlflowClient(_spool_uri()), MlflowClient(uri)
    lines = []
    for experiment in source.search_experiments():
        for run in source.search_runs([experiment.experiment_id]):
            _copy(source, target, run, _experiment(target, experiment.name))
            source.delete_run(run.info.run_id)
            lines.append(f"{experiment.name}: sent run {run.info.run_name}")
    return lines


def _copy(source: MlflowClient, target: MlflowClient, run: Run, experiment: str) -> None:
    """Copy one run with its parameters, curves, tags, inputs and files."""
    import tempfile

    from mlflow.entities import Param

    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    copy = target.create_run(
        experiment, start_time=run.info.start_time, tags=tags, run_name=run.info.run_name
    ).info.run_id
    target.log_batch(copy, params=[Param(key, value) for key, value in run.data.params.items()])
    for metric in run.data.metrics:
        history = source.get_metric_history(run.info.run_id, metric)
        for start in range(0, len(history), 1000):  # a server takes at most 1,000 points a request
            target.log_batch(copy, metrics=history[start : start + 1000])
    target.log_inputs(copy, run.inputs.dataset_inputs if run.inputs else None)
    with tempfile.TemporaryDirectory() as folder:
        for item in source.list_artifacts(run.info.run_id):
            path = Path(source.download_artifacts(run.info.run_id, item.path, folder))
            if path.is_dir():
                target.log_artifacts(copy, str(path), item.path)
            else:
                target.log_artifact(copy, str(path))
        if (Path(folder) / "bundle").is_dir():
            from loopline.training.onnx_model import log_onnx_model

            _use(target.tracking_uri)
            log_onnx_model(copy, Path(folder) / "bundle")
    target.set_terminated(copy, run.info.status, run.info.end_time)
