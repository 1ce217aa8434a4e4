"""Tracking against a real MLflow server: there, away, and back again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from onnx import TensorProto, checker, helper, save

from loopline.errors import LooplineError
from loopline.training import tracking


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def bundle(folder):
    """A folder with a tiny ONNX model in it."""
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


def train_once(bundle):
    run = tracking.Training("classifier", parameters={"train": {"epochs": 2}}, dataset="digits", data_sha256="d" * 64)
    run.log(1, {"val_loss": 0.5})
    run.log(2, {"val_loss": 0.25})
    run.finish("w" * 64)
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
    run = tracking.find(store, "classifier", tag="bundle_sha256", value="b" * 64)
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
    train_once(bundle)
    run = assert_complete(tracking.client())
    import mlflow

    loaded = mlflow.onnx.load_model(f"runs:/{run.info.run_id}/model")
    assert loaded.graph.output[0].name == "probabilities"
    assert (folder / "mlflow.db").exists()


def test_a_restored_training_gets_a_run_of_its_own(folder, bundle):
    tracking.package("text", weights_sha256="x", bundle=bundle, bundle_version="y", metrics={}, pictures=[], reports=[])
    assert tracking.find(tracking.client(), "text", tag="weights_sha256", value="x") is not None


def test_a_lost_server_costs_nothing_and_gets_the_run_later(folder, bundle, monkeypatch, capfd):
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    train_once(bundle)
    assert "is away" in capfd.readouterr().err
    with pytest.raises(LooplineError, match="still away"):
        tracking.sync()

    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "served"),
    ]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env=os.environ | {"MLFLOW_TRACKING_URI": ""}
        )
    try:
        for _ in range(480):  # a cold server takes 16 s, and longer on a busy machine
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.5)
        assert tracking.sync() == ["classifier: sent run classifier-digits"]
        assert_complete(tracking.client())
        assert tracking.sync() == []
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)
