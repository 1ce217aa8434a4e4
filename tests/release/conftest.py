"""Bundles of small models, and a project with its own MLflow store."""

import json
import os
import shutil

import brightness
import pytest

from loopline.release import bundle


@pytest.fixture
def make(tmp_path):
    """make("good", 130) -> a bundle whose model has its threshold at 130; the true threshold is 127.5."""

    def build(folder, threshold, *, labels=brightness.LABELS, padding=0, **options):
        parts = tmp_path / "parts"
        parts.mkdir(exist_ok=True)
        model = brightness.onnx_model(parts / "model.onnx", threshold, labels=len(labels), padding=padding)
        spec = brightness.described(labels=labels).spec
        (parts / "drift.json").write_text(json.dumps(brightness.reference(spec)))
        (parts / "confusion.png").write_bytes(b"\x89PNG")
        return bundle.write(
            tmp_path / folder,
            brightness.described(labels=labels, **options),
            model=model,
            drift=parts / "drift.json",
            card=f"# classifier\n\nthreshold {threshold}\n",
            pictures=[parts / "confusion.png"],
        )

    return build


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """An MLflow database with empty tables, created once because that takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def project(tmp_path, monkeypatch, empty_store):
    """A project folder with params.yaml, a manifest, its own MLflow store and an empty decision log."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("LOOPLINE_ACTOR", "tester")
    monkeypatch.delenv("LOOPLINE_DECISIONS", raising=False)
    (tmp_path / "params.yaml").write_text(brightness.params())
    brightness.write_manifest(tmp_path / "data/classifier/manifest.parquet")
    assert "MLFLOW_REGISTRY_URI" not in os.environ
    return tmp_path
