"""The stages one after the other, on the embedded digits with a small network: the whole path, and what must stop it."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import yaml
from PIL import Image

from loopline import settings, tasks
from loopline.data import manifest
from loopline.errors import LooplineError
from loopline.lib import machine, sessions
from loopline.release import bundle
from loopline.stages import calibrate, evaluate, export, ingest, package, quantize, train, validate
from loopline.training import parity, quantization

sys.path.insert(0, str(Path(__file__).parent / "serving"))
from servers import Process

ROOT = Path(__file__).parents[1]
SMALL = {"epochs": 8, "width": 8, "batch_size": 32}


def workspace(folder, monkeypatch, *, dataset="digits", **recipe):
    """An empty folder that holds what the stages read, with a small recipe for the classifier."""
    params = yaml.safe_load((ROOT / "tests/params.yaml").read_text(encoding="utf-8"))
    params["models"]["classifier"]["dataset"] = str(dataset)
    params["models"]["classifier"]["train"] |= SMALL | recipe
    params["models"]["classifier"]["evaluate"] |= {"floors": {"accuracy": 0.9}, "must_beat_simple": False}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (folder / "data").mkdir()
    for name in ("catalog.yaml", "catalog"):
        (folder / "data" / name).symlink_to(ROOT / "data" / name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    return workspace(tmp_path, monkeypatch)


def test_from_data_to_a_verified_bundle_and_a_run_in_mlflow(here):
    for stage in (ingest, validate, train, export, quantize, evaluate, calibrate, package):
        stage.main("classifier")
    made = bundle.read(here / "models/classifier/bundle")
    assert made.manifest.metrics["metrics"]["accuracy"]["value"] >= 0.9
    assert made.manifest.quantization in ("int8", "fp32")
    assert not list(here.rglob("*.partial"))

    from loopline.release import mlflow_store

    store = mlflow_store.client()
    run = mlflow_store.find(store, "classifier", tag="bundle_sha256", value=made.version)
    assert len(store.get_metric_history(run.info.run_id, "val_loss")) == SMALL["epochs"]
    assert {item.path for item in store.list_artifacts(run.info.run_id)} >= {"bundle", "plots"}
    for path in (here / "models").rglob("*.json"):
        assert run.info.run_id not in path.read_text(encoding="utf-8")
        assert str(here) not in path.read_text(encoding="utf-8")

    torch_fp32_int8_and_http_agree(here)

    (here / "models/classifier/bundle/model.onnx").write_bytes(b"tampered")
    with pytest.raises(bundle.BundleError, match=r"model\.onnx"):
        bundle.verify(here / "models/classifier/bundle")


def torch_fp32_int8_and_http_agree(here):
    """The same image files through all four. HTTP runs the file that ships on pixels of its own making, so it must give the same."""
    stages, options = here / "models/classifier", settings.load().models["classifier"]
    files = manifest.load_split(here / "data/classifier/manifest.parquet", "test").inputs[:32]
    spec = bundle.read(stages / "bundle").manifest.spec
    inputs = tasks.find("classification").preprocessor(spec, stages)(files)
    torch = tasks.find("classification").trainer().reference(stages / "train")(inputs)
    fp32, shipped = (sessions.run(stages / part / "model.onnx", inputs) for part in ("export", "bundle"))
    server = Process("--port", 0, stages / "bundle")
    try:
        url = f"{server.url}/predict/classifier"
        answers = [
            requests.post(url, data=file, timeout=20).json()["predictions"][0]["probabilities"] for file in files
        ]
    finally:
        assert server.stop() == 0
    http = {"probabilities": np.array([[answer[label] for label in spec.labels] for answer in answers])}
    parity.check(torch, fp32, tolerance=options.export.tolerance, what="torch and FP32")
    assert quantization.distance(fp32, shipped) <= options.quantize.tolerance
    parity.check({"probabilities": shipped["probabilities"]}, http, tolerance=1e-5, what="the bundle and HTTP")
    with pytest.raises(LooplineError, match="the bundle and a server"):
        upside_down = {"probabilities": http["probabilities"][::-1]}
        parity.check(
            {"probabilities": shipped["probabilities"]}, upside_down, tolerance=1e-5, what="the bundle and a server"
        )


def test_forty_percent_of_labels_flipped_are_refused_by_evaluate(tmp_path, monkeypatch):
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    generator = np.random.default_rng(0)
    flipped = np.where(
        generator.random(len(labels)) < 0.4, (labels + generator.integers(1, 10, len(labels))) % 10, labels
    )
    folder = tmp_path / "flipped"
    for row, (image, label) in enumerate(zip(pixels.reshape(-1, 8, 8), flipped, strict=True)):
        buffer = io.BytesIO()
        Image.fromarray((image * 15.9).astype(np.uint8)).resize((28, 28)).save(buffer, "PNG")
        path = folder / str(label) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    (tmp_path / "here").mkdir()
    workspace(tmp_path / "here", monkeypatch, dataset=folder)
    for stage in (ingest, validate, train, export, quantize):
        stage.main("classifier")
    with pytest.raises(LooplineError, match=r"must not ship:\s+accuracy 0\.\d+ is below the floor"):
        evaluate.main("classifier")
    report = json.loads(Path("models/classifier/report.json").read_text(encoding="utf-8"))
    assert report["metrics"]["accuracy"]["value"] < 0.9
    assert report["machine"] == machine.kind()  # and no name: machines of one kind have several


def test_a_training_killed_half_way_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    sums = {}
    for kind in ("whole", "killed"):
        (tmp_path / kind).mkdir()
        workspace(tmp_path / kind, monkeypatch)
        ingest.main("classifier")
        command = [sys.executable, "-m", "loopline.cli", "stage", "train", "classifier"]
        if kind == "killed":
            stop_after_first_epoch(command)
            assert not list(Path("models/classifier/train").glob("*"))
        subprocess.run(command, check=True, capture_output=True, env=os.environ)
        sums[kind] = hashlib.sha256(Path("models/classifier/train/model.safetensors").read_bytes()).hexdigest()
        assert not list(Path(".loopline/work/classifier").glob("*"))
    assert sums["whole"] == sums["killed"]


def stop_after_first_epoch(command):
    """Start a training and kill it, with no chance to tidy up, as soon as it has written a checkpoint."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as training:
        work = Path(".loopline/work/classifier")
        for _ in range(6000):
            if any(not path.name.endswith(".partial") for path in work.glob("*")):
                break
            assert training.poll() is None, "the training ended before it could be killed"
            time.sleep(0.02)
        training.send_signal(signal.SIGKILL)
