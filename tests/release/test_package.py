"""The package stage: from the outputs of the earlier stages to a bundle and its evidence in MLflow."""

import json
import shutil
from pathlib import Path

import brightness
import pytest

import loopline
from loopline.errors import LooplineError
from loopline.release import bundle, mlflow_store, registry
from loopline.stages import package, stage_files

INTERVAL = {"value": 0.98, "low": 0.96, "high": 1.0}


@pytest.fixture
def stages(project, monkeypatch):
    """The outputs of the earlier stages. No code is hashed, so that an edit during the tests changes nothing."""
    monkeypatch.setattr(package, "CODE", ())
    models = project / "models" / "classifier"
    for folder in ("train", "export", "quantize", "calibrate", "pictures"):
        (models / folder).mkdir(parents=True)
    brightness.onnx_model(models / "quantize" / "model.onnx", 127.5)
    stage_files.write_json(models / "export" / "spec.json", brightness.described().spec.to_dict())
    stage_files.write_json(models / "quantize" / "verdict.json", {"chosen": "int8", "reasons": ["fast"], "bytes": {}})
    stage_files.write_json(models / "calibrate" / "drift.json", brightness.reference(brightness.described().spec))
    stage_files.write_json(models / "calibrate" / "golden.json", {"schema": 1, "samples": []})
    (models / "train" / "model.safetensors").write_bytes(b"weights")
    (models / "pictures" / "confusion.png").write_bytes(b"\x89PNG")
    report = {"headline": "accuracy", "n": 256, "metrics": {"accuracy": INTERVAL}, "model_bytes": 1000}
    stage_files.write_json(models / "report.json", report | {"per_class": {}, "slices": {}, "calibration_error": 0.01})
    aside = {"a duplicate": {"count": 2, "examples": ["a.png"]}}
    stage_files.write_json(project / "data/classifier/ingest.json", {"samples": 256, "set_aside": aside})
    shutil.copyfile(brightness.ROOT / "data" / "catalog.yaml", project / "data" / "catalog.yaml")
    shutil.copytree(brightness.ROOT / "data" / "catalog", project / "data" / "catalog")
    return models


def test_the_bundle_holds_the_files_of_a_server_and_mlflow_holds_its_evidence(stages):
    package.main("classifier")
    opened = bundle.read(stages / "bundle")
    assert opened.manifest.spec == brightness.described().spec
    assert opened.manifest.inputs == brightness.described().inputs
    assert opened.manifest.outputs == brightness.described().outputs
    assert opened.manifest.quantization == "int8"
    assert opened.manifest.metrics["metrics"] == {"accuracy": INTERVAL}
    card = (opened.folder / "MODEL_CARD.md").read_text()
    assert "handwritten digits of scikit-learn" in card
    assert "| a duplicate | 2 |" in card
    assert "(pictures/confusion.png)" in card

    run = mlflow_store.find(mlflow_store.client(), "classifier", tag="bundle_sha256", value=opened.version)
    assert run.data.metrics["test.accuracy"] == 0.98
    assert registry.register(opened.folder).alias == "challenger"
    assert mlflow_store.client().get_model_version("classifier", "1").run_id == run.info.run_id


def test_packaging_twice_gives_the_same_bytes(stages):
    package.main("classifier")
    first = {path: path.read_bytes() for path in (stages / "bundle").rglob("*") if path.is_file()}
    package.main("classifier")
    assert first == {path: path.read_bytes() for path in (stages / "bundle").rglob("*") if path.is_file()}


def test_the_bundle_holds_no_run_id_and_no_absolute_path(stages, project):
    package.main("classifier")
    run = mlflow_store.client().search_runs([mlflow_store.client().get_experiment_by_name("classifier").experiment_id])[
        0
    ]
    for path in (stages / "bundle").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert str(project).encode() not in content
        assert run.info.run_id.encode() not in content


def test_the_lineage_follows_settings_and_data(stages, project):
    def lineage():
        package.main("classifier")
        return bundle.read(stages / "bundle").manifest.lineage

    before = lineage()
    (project / "params.yaml").write_text(brightness.params(calibrate={"bins": 99, "false_alarms": 0.05}))
    after = lineage()
    assert (before.data, before.code) == (after.data, after.code)
    assert before.parameters != after.parameters
    brightness.write_manifest(project / "data/classifier/manifest.parquet", split="val")
    assert lineage().data != after.data


def test_the_code_hash_follows_names_and_content(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.py").write_text("1")
    before = package.code_hash(tmp_path, ["data"])
    (tmp_path / "data" / "notes.txt").write_text("no code")
    assert package.code_hash(tmp_path, ["data"]) == before
    (tmp_path / "data" / "a.py").rename(tmp_path / "data" / "b.py")
    assert package.code_hash(tmp_path, ["data"]) != before


def test_the_code_of_every_room_that_makes_a_model_counts():
    rooms = Path(loopline.__file__).parent
    complete = package.code_hash(rooms, package.CODE)
    for room in package.CODE:
        assert package.code_hash(rooms, [other for other in package.CODE if other != room]) != complete


def test_only_the_last_part_of_a_data_folders_path_is_published(stages, project):
    (project / "params.yaml").write_text(brightness.params(dataset="/home/ada/secret/cats"))
    package.main("classifier")
    for path in (stages / "bundle").rglob("*"):
        assert path.is_dir() or b"/home/ada" not in path.read_bytes()
    assert "Trained on **cats**" in (stages / "bundle" / "MODEL_CARD.md").read_text()


def test_a_missing_stage_is_named(stages):
    (stages / "quantize" / "verdict.json").unlink()
    with pytest.raises(LooplineError, match=r"verdict\.json not found: run `dvc repro`"):
        package.main("classifier")
    assert json.loads((stages / "report.json").read_text())["n"] == 256
