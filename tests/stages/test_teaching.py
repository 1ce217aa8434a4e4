"""A training that learns from a teacher's answers, and what makes a teacher unusable."""

import hashlib
import json

import brightness
import numpy as np
import pytest
import torch
import yaml

from loopline import settings
from loopline.data import manifest
from loopline.errors import LooplineError
from loopline.lib import sessions
from loopline.release import bundle
from loopline.stages import stage_files, teaching
from loopline.stages import train as train_stage
from loopline.tasks.spec import ModelSpec
from loopline.training import loop, quality_report

SMALL = {
    "epochs": 12,
    "patience": 12,
    "batch_size": 16,
    "width": 4,
    "learning_rate": 0.01,
    "rotate": 0,
    "shift": 0,
    "scale": 0,
}


def samples(seed, *, wrong=0.0, splits=("train", "val", "test", "test")):
    """One sample for each brightness; a share of the training labels is wrong."""
    random = np.random.default_rng(seed)
    for value in range(256):
        split, right = splits[value % 4], value > 127
        label = "bright" if right != (split == "train" and random.random() < wrong) else "dark"
        content = brightness.png(value)
        identity = hashlib.sha256(content).hexdigest()
        yield manifest.Sample(
            id=identity, source="s", path=f"{value}.png", split=split, label=label, image=content, width=8, height=8
        )


def write_data(name, **change):
    path = stage_files.manifest(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest.write(path, samples(0, **change), task="classification", labels=brightness.LABELS)
    return path


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a teacher that knows the truth, and a student whose training labels are often wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    data = write_data("teacher")
    write_data("student", wrong=0.35)
    described = brightness.described(name="teacher", data=hashlib.sha256(data.read_bytes()).hexdigest())
    (tmp_path / "drift.json").write_text(json.dumps(brightness.reference(described.spec)))
    graph = brightness.onnx_model(tmp_path / "model.onnx", 127.5)
    (tmp_path / "models/teacher").mkdir(parents=True)
    written = bundle.write(
        tmp_path / "models/teacher/bundle", described, model=graph, drift=tmp_path / "drift.json", card="# teacher\n"
    )
    params(tmp_path, {"model": "teacher", "version": written.version[:12], "weight": 1.0})
    return tmp_path


def params(folder, teacher):
    content = yaml.safe_load(brightness.params())
    model = content["models"]["classifier"] | {"input": {"height": 8, "width": 8, "channels": 1}}
    student = model | {"train": model["train"] | SMALL | {"teacher": teacher}}
    content["models"] = {"teacher": model, "student": student}
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


def taught():
    _, model = settings.model("student")
    return teaching.of("student", model, manifest.load_split(stage_files.manifest("student"), "train"))


def test_a_student_of_a_good_teacher_is_better_than_its_labels_and_the_report_says_by_how_much(project):
    train_stage.main("student")
    folder = stage_files.stage("student", "train")
    assert (folder / stage_files.UNTAUGHT / "model.safetensors").exists()
    test = manifest.load_split(stage_files.manifest("student"), "test")
    _, model = settings.model("student")
    task = train_stage.tasks.find("classification")
    trainer = task.trainer()
    trainer.export(folder, test, test, model, out=project / "taught.onnx")
    spec = ModelSpec(task="classification", labels=test.labels, image=brightness.described().spec.image)
    inputs = task.preprocessor(spec, folder)(test.inputs)
    outputs, alone = (
        sessions.run(path, inputs) for path in (project / "taught.onnx", folder / stage_files.UNTAUGHT / "model.onnx")
    )
    report = quality_report.teaching(task, outputs, alone, test, spec, model.evaluate, 0)
    accuracy = (outputs["probabilities"].argmax(1) == test.targets).mean()
    assert accuracy > 0.9
    assert report["gain_over_untaught"]["value"] == pytest.approx(accuracy - report["untaught"], abs=1e-3)
    assert report["gain_over_untaught"]["low"] > 0


def test_the_answers_are_those_of_the_bundle_in_the_order_of_the_data(project):
    answers = taught()
    train = manifest.load_split(stage_files.manifest("student"), "train")
    values = [int(np.asarray(brightness.Image.open(brightness.io.BytesIO(each))).mean()) for each in train.inputs]
    bright = answers.probabilities[:, train.labels.index("bright")]
    assert ((bright > 0.5) == (np.array(values) > 127)).all()
    assert (answers.temperature, answers.weight) == (2.0, 1.0)


def test_the_loss_is_that_of_hinton_and_zero_for_equal_answers():
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(size=(5, 3)))
    teacher = random.normal(size=(8, 3))
    probabilities = np.exp(teacher) / np.exp(teacher).sum(1, keepdims=True)
    rows = torch.tensor([7, 2, 0, 5, 1])
    given = loop.Taught(probabilities.astype(np.float32), 3.0, 0.5)
    t, s = (
        np.exp(each / 3) / np.exp(each / 3).sum(1, keepdims=True) for each in (teacher[rows.numpy()], logits.numpy())
    )
    assert float(given.loss(logits, rows)) == pytest.approx(9 * (t * (np.log(t) - np.log(s))).sum(1).mean(), rel=1e-4)
    assert float(given.loss(torch.from_numpy(teacher)[rows], rows)) == pytest.approx(0, abs=1e-6)


def test_a_teacher_that_saw_the_test_split_is_refused(project):
    data = write_data("teacher", splits=("test", "val", "train", "test"))
    read = bundle.read(project / "models/teacher/bundle")
    described = brightness.described(name="teacher", data=hashlib.sha256(data.read_bytes()).hexdigest())
    again = bundle.write(
        project / "models/teacher/bundle", described, model=read.model, drift=project / "drift.json", card="# teacher\n"
    )
    params(project, {"model": "teacher", "version": again.version[:12]})
    with pytest.raises(LooplineError, match="teacher learnt from 64 of the 128 samples of the test split"):
        taught()


def test_a_teacher_of_unknown_data_is_refused(project):
    write_data("teacher", wrong=0.1)  # its data are newer than its bundle
    with pytest.raises(LooplineError, match="nobody knows from what the teacher teacher learnt"):
        taught()
    write_data("teacher")
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["models"]["teacher"]["train"] = {"adopt": "somewhere.onnx"}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(LooplineError, match="nobody knows from what the teacher teacher learnt"):
        taught()


def test_another_version_and_a_missing_bundle_are_refused(project):
    params(project, {"model": "teacher", "version": "0" * 12})
    with pytest.raises(LooplineError, match=r"has the version .*, but params.yaml says 000000000000"):
        taught()
    (project / "models/teacher/bundle").rename(project / "away")
    with pytest.raises(LooplineError, match="run dvc repro package@teacher first"):
        taught()


def test_other_classes_are_refused(project):
    path = stage_files.manifest("student")
    others = [
        sample.__class__(**(vars(sample) | {"label": {"bright": "light", "dark": "night"}[sample.label]}))
        for sample in samples(0)
    ]
    manifest.write(path, others, task="classification", labels=("light", "night"))
    with pytest.raises(LooplineError, match="the data are for classification with light, night"):
        taught()
