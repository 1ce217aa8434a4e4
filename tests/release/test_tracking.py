"""Tracking with real MLflow servers that answer, are away, end or fall silent during a training, and come back."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import odd_servers
import pytest
from onnx import TensorProto, checker, helper, save

from loopline.errors import LooplineError
from loopline.release import mlflow_store, spool, tracking


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # An absolute path, because MLflow keeps one engine for each address, whatever the working directory.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return tmp_path


@pytest.fixture
def bundle(folder):
    """A folder with a small ONNX model."""
    node = helper.make_node("Cast", ["image"], ["probabilities"], to=TensorProto.FLOAT)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    checker.check_model(model)
    (folder / "bundle").mkdir()
    save(model, folder / "bundle" / "model.onnx")
    return folder / "bundle"


def train(between=lambda: None, weights="w" * 64):
    """Track a training of two epochs and call `between` between them."""
    run = tracking.Training("classifier", parameters={"train": {"epochs": 2}}, dataset="digits", data_sha256="d" * 64)
    run.log(1, {"val_loss": 0.5})
    between()
    run.log(2, {"val_loss": 0.25})
    run.finish(weights)


def package(bundle):
    tracking.package(
        "classifier",
        weights_sha256="w" * 64,
        bundle=bundle,
        bundle_version="b" * 64,
        metrics={"accuracy": 0.9, "unknown": float("nan")},
        pictures=[],
        reports=[],
    )


def assert_complete(store):
    run = mlflow_store.find(store, "classifier", tag="bundle_sha256", value="b" * 64)
    assert run.data.params == {"train.epochs": "2"}
    assert [point.value for point in store.get_metric_history(run.info.run_id, "val_loss")] == [0.5, 0.25]
    assert run.data.metrics["test.accuracy"] == 0.9
    assert run.data.tags["weights_sha256"] == "w" * 64
    assert run.inputs.dataset_inputs[0].dataset.name == "digits"
    assert [item.path for item in store.list_artifacts(run.info.run_id, "bundle")] == ["bundle/model.onnx"]
    model = store.search_logged_models([run.info.experiment_id])[0]
    assert model.name == "model"
    assert run.info.status == "FINISHED"
    return run


def test_a_training_and_its_package_are_one_run_in_the_local_store(folder, bundle):
    train()
    package(bundle)
    run = assert_complete(mlflow_store.client())
    import mlflow

    loaded = mlflow.onnx.load_model(f"runs:/{run.info.run_id}/model")
    assert loaded.graph.output[0].name == "probabilities"
    assert (folder / "mlflow.db").exists()
    assert not mlflow_store.SPOOL.exists()


def test_a_restored_training_gets_a_run_of_its_own(folder, bundle):
    tracking.package("text", weights_sha256="x", bundle=bundle, bundle_version="y", metrics={}, pictures=[], reports=[])
    assert mlflow_store.find(mlflow_store.client(), "text", tag="weights_sha256", value="x") is not None


@contextmanager
def server(folder, port):
    """Run a real MLflow server on that port with its runs in `folder`; yield a function that sends it a signal."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", str(folder / "served")]
    environment = os.environ | {"MLFLOW_TRACKING_URI": "", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
    try:
        for _ in range(1200):  # a cold server takes 16 s, and minutes on a busy machine
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.5)
        yield lambda number: os.killpg(process.pid, number)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def runs(store):
    return store.search_runs([mlflow_store.experiment(store, "classifier")])


def test_a_lost_server_loses_no_data_and_gets_the_run_later(folder, bundle, monkeypatch, capfd):
    port = odd_servers.free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    train()
    package(bundle)
    assert "Connection refused" in capfd.readouterr().err
    with pytest.raises(LooplineError, match=r"Connection refused.*stay in \.loopline/spool"):
        spool.sync()
    artifacts = mlflow_store.SPOOL / "artifacts"
    assert list(artifacts.rglob("*.*")), [str(path) for path in mlflow_store.SPOOL.rglob("*")]
    with server(folder, port):
        assert spool.sync() == ["classifier: sent run classifier-digits"]
        assert not list(artifacts.rglob("*.*")), "files that were sent must leave the spool"
        assert_complete(mlflow_store.client())
        assert spool.sync() == []


def test_a_server_killed_during_a_training_gets_the_rest_of_the_run_from_package(folder, bundle, monkeypatch, capfd):
    port = odd_servers.free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with server(folder, port) as kill:
        train(between=lambda: kill(signal.SIGKILL))
    message = capfd.readouterr().err
    assert message.count("The training goes on") == 1
    assert "loopline track sync" in message
    assert "Traceback" not in message
    with server(folder, port):
        package(bundle)
        store = mlflow_store.client()
        assert_complete(store)
        assert len(runs(store)) == 1
        assert spool.sync() == []


def test_a_server_that_falls_silent_ends_neither_training_nor_package(folder, bundle, monkeypatch, capfd):
    port = odd_servers.free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with server(folder, port) as kill:

        def silence():
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
            kill(signal.SIGSTOP)

        train(between=silence)
        assert "timed out" in capfd.readouterr().err
        package(bundle)
        assert "timed out" in capfd.readouterr().err
        kill(signal.SIGCONT)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        assert spool.sync() == ["classifier: sent run classifier-digits"]
        store = mlflow_store.client()
        assert_complete(store)
        assert len(runs(store)) == 1


def test_a_run_that_is_deleted_during_the_training_is_kept_and_sent_as_a_new_run(folder, bundle, capfd):
    def delete():
        store = mlflow_store.client()
        store.delete_run(runs(store)[0].info.run_id)

    train(between=delete)
    assert "must be in the 'active' state" in capfd.readouterr().err
    package(bundle)
    assert_complete(mlflow_store.client())


def test_the_run_of_a_training_that_still_runs_is_not_sent(folder, bundle, monkeypatch):
    with odd_servers.answering(503) as uri, monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", uri)
        run = tracking.Training("classifier", parameters={}, dataset="digits", data_sha256="d" * 64)
    run.log(1, {"val_loss": 0.5})
    assert spool.sync() == []
    run.finish("w" * 64)
    assert spool.sync() == ["classifier: sent run classifier-digits"]


def test_a_training_goes_on_even_if_no_record_can_be_kept(folder, monkeypatch, capfd):
    def lose_everything():
        store = mlflow_store.client()
        store.delete_run(runs(store)[0].info.run_id)
        mlflow_store.SPOOL.parent.mkdir()
        mlflow_store.SPOOL.write_text("a file in the spool's place")

    train(between=lose_everything)
    assert "goes on without a record" in capfd.readouterr().err
