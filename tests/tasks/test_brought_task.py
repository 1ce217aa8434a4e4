"""A package of somebody else brings a fourth task in one folder, and nothing of the house knows its name."""

import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
import yaml
from PIL import Image

from loopline.cli.pipeline import STAGES
from loopline.release import bundle

ROOT = Path(__file__).parents[2]
BROUGHT = Path(__file__).with_name("brought")
SIDE, NUMBERS = 8, 12


def picture(number, seed):
    """Grey noise with as many bright pixels as the number says."""
    random = np.random.default_rng([number, seed])
    pixels = random.integers(0, 8, SIDE * SIDE)
    pixels[random.permutation(SIDE * SIDE)[:number]] = 247
    encoded = io.BytesIO()
    Image.fromarray(np.uint8(pixels.reshape(SIDE, SIDE))).save(encoded, "PNG")
    return encoded.getvalue()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with one model of the task, through all stages; the folder and what the stages printed."""
    folder = tmp_path_factory.mktemp("project")
    content = yaml.safe_load((ROOT / "tests/params.yaml").read_text(encoding="utf-8"))
    model = next(dict(model) for model in content["models"].values() if model["input"].get("channels") == 1)
    model |= {"task": "number", "dataset": "pictures", "input": {"height": SIDE, "width": SIDE, "channels": 1}}
    model |= {"train": {"epochs": 1, "patience": 1, "batch_size": 1, "learning_rate": 1, "ridge": 1e-3}}
    model |= {"evaluate": {"floors": {"within_half": 0.9}, "must_beat_simple": False, "resamples": 100}}
    model["calibrate"] |= {"streams": 100}
    model["expectations"] = {"min_samples": 100, "max_set_aside": 0.05, "min_side": 8}
    (folder / "params.yaml").write_text(yaml.safe_dump(content | {"models": {"counter": model}}), encoding="utf-8")
    (folder / "data").mkdir()
    for name in ("catalog", "catalog.yaml"):
        (folder / "data" / name).symlink_to(ROOT / "data" / name)
    for number in range(NUMBERS):
        for seed in range(50):
            path = folder / f"pictures/{number}/{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number, seed))
    (folder / "pictures/many").mkdir()
    (folder / "pictures/many/1.png").write_bytes(picture(20, 0))
    said = {stage: loopline(folder, "stage", stage, "counter") for stage in STAGES}
    return folder, said


def environment(folder, brought=BROUGHT):
    path = os.pathsep.join([str(brought), str(ROOT / "src")])
    return os.environ | {"PYTHONPATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}


def loopline(folder, *arguments, brought=BROUGHT):
    command = [sys.executable, "-m", "loopline.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment(folder, brought), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_it_is_ingested_trained_exported_judged_and_packaged(project):
    folder, said = project
    ingest = json.loads((folder / "data/counter/ingest.json").read_text())
    assert ingest["samples"] == NUMBERS * 50
    assert ingest["set_aside"]["label that is not a number"]["count"] == 1
    made = bundle.read(folder / "models/counter/bundle")
    assert (made.manifest.spec.task, made.manifest.spec.labels) == ("number", ())
    report = json.loads((folder / "models/counter/report.json").read_text())
    assert report["headline"] == "within_half"
    assert report["metrics"]["mean_absolute_error"]["value"] < 0.3
    assert report["baselines"]["majority"] < 0.2
    assert "within_half" in said["evaluate"]
    card = (folder / "models/counter/bundle/MODEL_CARD.md").read_text()
    assert "Says which number an image shows." in card
    assert "| always the same answer | 0." in card
    assert not re.search("class|most common", card, re.IGNORECASE)
    assert "class" not in said["ingest"]
    assert "<dt>classes</dt>" not in (folder / "reports/counter/validation.html").read_text()


@pytest.mark.parametrize(("file", "changes"), [("training.py", True), ("notes.txt", False)])
def test_the_lineage_covers_the_code_of_the_package(project, tmp_path, file, changes):
    folder, _ = project
    shutil.copytree(folder, tmp_path / "project", symlinks=True)
    shutil.copytree(BROUGHT, tmp_path / "brought")
    with (tmp_path / "brought/number" / file).open("a") as opened:
        opened.write("# changed\n")
    loopline(tmp_path / "project", "stage", "package", "counter", brought=tmp_path / "brought")
    before, after = (
        bundle.read(place / "models/counter/bundle").manifest.lineage for place in (folder, tmp_path / "project")
    )
    assert (after.data, after.parameters) == (before.data, before.parameters)
    assert (after.code != before.code) is changes


def test_a_model_under_its_floor_does_not_ship(project):
    folder, _ = project
    content = yaml.safe_load((folder / "params.yaml").read_text())
    content["models"]["counter"]["evaluate"]["floors"] = {"within_half": 1.01}
    strict = folder.with_name("strict")
    subprocess.run(["cp", "-r", folder, strict], check=True)
    (strict / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(AssertionError, match="below the floor"):
        loopline(strict, "stage", "evaluate", "counter")


def test_an_expectation_about_classes_is_refused_where_a_task_has_none(project):
    folder, _ = project
    content = yaml.safe_load((folder / "params.yaml").read_text())
    content["models"]["counter"]["expectations"]["min_per_class"] = 20
    with_classes = folder.with_name("with_classes")
    with_classes.mkdir()
    (with_classes / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(AssertionError, match=r"models\.counter\.expectations\.min_per_class: Extra inputs"):
        loopline(with_classes, "stage", "validate", "counter")


def counted(url, signal):
    """How many samples the server has counted of a signal."""
    text = requests.get(f"{url}/metrics", timeout=60).text
    rows = [line for line in text.splitlines() if "signal_rows" in line and f'signal="{signal}"' in line]
    return sum(float(row.rpartition(" ")[2]) for row in rows)


def test_it_is_served_watched_journalled_and_takes_labels(project):
    from servers import Process

    folder, _ = project
    served = folder / "models/counter/bundle"
    journal = folder / "journal"
    process = Process("--port", 0, "--journal", journal, "--journal-sample", 1, served, env=environment(folder))
    try:
        for seed in itertools.count(100):  # a server counts some of each half second
            sample = picture(seed % NUMBERS, seed)
            answer = requests.post(f"{process.url}/predict/counter", data=sample, timeout=60)
            assert answer.json()["predictions"][0]["label"] == str(seed % NUMBERS)
            if seed % 50 == 0 and counted(process.url, "value") >= 50:
                break
        identity = answer.json()["id"]
        feedback = f"{process.url}/v2/models/counter/feedback"
        assert requests.post(feedback, json={"id": identity, "label": "3"}, timeout=60).status_code == 202
        refused = requests.post(feedback, json={"id": identity, "label": "eleven"}, timeout=60)
        assert (refused.status_code, "not a whole number" in refused.text) == (400, True)
        document = requests.get(f"{process.url}/openapi.json", timeout=60).json()
        assert document["paths"]["/predict/counter"]["post"]["summary"] == "Which number does this image show?"
        loopline(folder, "drift", "report", "models/counter/bundle", "--url", process.url, "--out", "drift.html")
        page = (folder / "drift.html").read_text()
        assert "within_half" in page
        assert "roundness" in page
    finally:
        assert process.stop() == 0
    lines = [json.loads(line) for path in journal.rglob("*.jsonl") for line in path.read_text().splitlines()]
    assert sum(line["kind"] != "label" for line in lines) >= NUMBERS
    assert [line["label"] for line in lines if line["kind"] == "label"] == ["3"]


def test_it_predicts_a_folder_in_a_batch(project):
    folder, _ = project
    (folder / "new").mkdir()
    for number in (3, 7):
        (folder / f"new/{number}.png").write_bytes(picture(number, 123))
    loopline(folder, "predict", "models/counter/bundle", "new", "out.jsonl")
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["label"]) for row in rows] == [("3.png", "3"), ("7.png", "7")]


def test_an_unknown_task_is_one_message(project):
    folder, _ = project
    command = [sys.executable, "-m", "loopline.cli", "stage", "ingest", "counter"]
    alone = environment(folder) | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no task 'number': there are classification, detection, text. docs/extend.md" in done.stderr
    assert "Traceback" not in done.stderr


COMPARED = re.compile(
    r"""(?:==|!=|\bin\b|\bcase\b)\s*[(\[{]?\s*["'](classification|detection|text)["']|["'](classification|detection)["']"""
)
# `--redact text` of the journal, and the content of a sample: neither is a task's name
CONTENTS = re.compile(r"""\b(redact|content) == "text\"""")


def compares_a_task(source):
    return [line.strip() for line in source.splitlines() if COMPARED.search(CONTENTS.sub("", line))]


def test_no_file_outside_the_tasks_folders_compares_a_task_s_name():
    package = ROOT / "src/loopline"
    found = {
        path.relative_to(ROOT).as_posix(): lines
        for path in package.rglob("*.py")
        if not path.is_relative_to(package / "tasks") and (lines := compares_a_task(path.read_text(encoding="utf-8")))
    }
    assert found == {}
    assert compares_a_task('if model.task == "detection":') and compares_a_task('TABLE = {"classification": 1}')
