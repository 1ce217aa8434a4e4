"""A training that learns from a teacher's answers, and what makes a teacher unusable."""

import hashlib
import json

import brightness
import numpy as np
import pytest
import torch
import yaml

from loopline import settings
from loopline.cli import main
from loopline.data import manifest
from loopline.errors import LooplineError
from loopline.lib import sessions
from loopline.release import bundle
from loopline.stages import calibrate, evaluate, export, package, quantize, stage_files, teaching
from loopline.stages import train as train_stage
from loopline.tasks.spec import ModelSpec
from loopline.training import quality_report
from loopline.training.distillation import UNLABELLED, Taught

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
    params(tmp_path, {"model": "teacher", "version": "0" * 12})
    (tmp_path / "models/teacher").mkdir(parents=True)
    params(tmp_path, {"model": "teacher", "version": write_bundle(tmp_path, data).version[:12], "weight": 1.0})
    return tmp_path


def write_bundle(folder, data):
    """Write the teacher's bundle as made from this manifest and the settings of today."""
    everything, model = settings.model("teacher")
    described = brightness.described(
        name="teacher",
        data=hashlib.sha256(data.read_bytes()).hexdigest(),
        parameters=stage_files.parameters(everything.seed, model),
    )
    (folder / "drift.json").write_text(json.dumps(brightness.reference(described.spec)))
    graph = brightness.onnx_model(folder / "model.onnx", 127.5)
    target = folder / "models/teacher/bundle"
    return bundle.write(target, described, model=graph, drift=folder / "drift.json", card="# teacher\n")


def params(folder, teacher):
    content = yaml.safe_load(brightness.params())
    model = content["models"]["classifier"] | {"input": {"height": 8, "width": 8, "channels": 1}}
    student = model | {"train": model["train"] | SMALL | {"teacher": teacher}}
    content["models"] = {"teacher": model, "student": student}
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


def lesson():
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
    outputs, untaught = sessions.run(project / "taught.onnx", inputs), folder / stage_files.UNTAUGHT
    report = quality_report.teaching(task, outputs, inputs, untaught, test, spec, model.evaluate, 0)
    accuracy = (outputs["probabilities"].argmax(1) == test.targets).mean()
    assert accuracy > 0.9
    assert report["gain_over_untaught"]["value"] == pytest.approx(accuracy - report["untaught"], abs=1e-3)
    assert report["gain_over_untaught"]["low"] > 0
    assert report["teacher"] == {"model": "teacher", "version": bundle.read(project / "models/teacher/bundle").version}


def test_the_answers_are_those_of_the_bundle_in_the_order_of_the_data(project):
    answers = lesson().more["taught"]
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
    given = Taught(probabilities.astype(np.float32), 3.0, 0.5)
    t, s = (
        np.exp(each / 3) / np.exp(each / 3).sum(1, keepdims=True) for each in (teacher[rows.numpy()], logits.numpy())
    )
    assert float(given.loss(logits, rows)) == pytest.approx(9 * (t * (np.log(t) - np.log(s))).sum(1).mean(), rel=1e-4)
    assert float(given.loss(torch.from_numpy(teacher)[rows], rows)) == pytest.approx(0, abs=1e-6)


def test_a_teacher_that_saw_the_test_split_is_refused(project):
    again = write_bundle(project, write_data("teacher", splits=("test", "val", "train", "test")))
    params(project, {"model": "teacher", "version": again.version[:12]})
    with pytest.raises(LooplineError, match="teacher learnt from 64 of the 128 samples of the test split"):
        lesson()


def test_a_teacher_of_unknown_data_is_refused(project):
    write_data("teacher", wrong=0.1)  # its data are newer than its bundle
    with pytest.raises(LooplineError, match="nobody knows from what the teacher teacher learnt"):
        lesson()


def test_an_adopted_teacher_is_refused(project):
    def train(value):
        content = yaml.safe_load((project / "params.yaml").read_text())
        content["models"]["teacher"]["train"] = {"adopt": "somewhere.onnx"}
        content["models"]["student"]["train"]["teacher"]["version"] = value
        (project / "params.yaml").write_text(yaml.safe_dump(content))

    train("0" * 12)
    train(write_bundle(project, stage_files.manifest("teacher")).version[:12])
    with pytest.raises(LooplineError, match="nobody knows from what the teacher teacher learnt"):
        lesson()


def test_a_teacher_with_other_settings_than_its_bundle_is_refused(project):
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["models"]["teacher"]["train"]["epochs"] = 99
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(LooplineError, match="made with other settings than those of teacher"):
        lesson()


def test_a_model_cannot_teach_itself_and_an_unknown_one_is_named(project):
    for name, words in (("student", "names the model itself"), ("somebody", "somebody")):
        params(project, {"model": name, "version": "0" * 12})
        with pytest.raises(LooplineError, match=words):
            lesson()


def test_what_a_teacher_s_own_teacher_answered_counts_too(project, capsys):
    """The student's test split has a sample that a teacher of its teacher answered without its label."""
    _, file = collected(project, capsys)
    content = yaml.safe_load((project / "params.yaml").read_text())
    first = content["models"]["teacher"]
    oldest = bundle.read(project / "models/teacher/bundle").version[:12]
    content["models"]["oldest"] = first
    content["models"]["teacher"] = first | {
        "train": first["train"] | {"teacher": {"model": "oldest", "version": oldest, "unlabelled": file}}
    }
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    write_data("oldest")
    (project / "models/teacher/bundle").rename(project / "models/oldest")
    (project / "models/oldest").rename(project / "moved")
    (project / "models/oldest").mkdir()
    (project / "moved").rename(project / "models/oldest/bundle")
    version = write_bundle(project, stage_files.manifest("teacher")).version[:12]
    content["models"]["student"]["train"]["teacher"]["version"] = version
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    assert lesson().teacher["version"].startswith(version)
    new = brightness.png(4, side=9)
    write_with(new, "test")
    with pytest.raises(LooplineError, match="teacher learnt from 1 of the 129 samples of the test split"):
        lesson()


def write_with(image, split):
    """Write the student's manifest with one more sample."""
    sample = manifest.Sample(
        id=hashlib.sha256(image).hexdigest(),
        source="v2",
        path="new.png",
        split=split,
        label="dark",
        image=image,
        width=9,
        height=9,
    )
    manifest.write(
        stage_files.manifest("student"), [*samples(0), sample], task="classification", labels=brightness.LABELS
    )
    return sample


def test_a_working_copy_of_a_retraining_uses_the_teacher_of_its_repository(project, monkeypatch):
    copy = project / ".loopline/retrainer/worktrees/r1"
    (copy / "data").mkdir(parents=True)
    (copy / "models/teacher").mkdir(parents=True)  # git's files of the teacher are there, DVC's are not
    (copy / "params.yaml").write_bytes((project / "params.yaml").read_bytes())
    (project / "data/student").rename(copy / "data/student")
    monkeypatch.chdir(copy)
    given = lesson()
    assert len(given.more["taught"].probabilities) == len(given.train.ids)
    teacher = settings.model("student")[1].train.teacher
    read = teaching._bundle(teacher)
    for stage, name in (("train", "model.safetensors"), ("quantize", "model.onnx")):
        (project / "models/teacher" / stage).mkdir()
        (project / "models/teacher" / stage / name).write_bytes(read.model.read_bytes())
    assert teaching._network(teacher, read).resolve() == project / "models/teacher/train"
    (project / "models/teacher/quantize/model.onnx").write_bytes(b"of another training")
    with pytest.raises(LooplineError, match=r"is not what .* was made of"):
        teaching._network(teacher, read)


def test_a_training_from_the_champion_s_weights_has_nothing_to_compare_with(project):
    _, model = settings.model("student")
    start = model.model_copy(
        update={"train": model.train.model_copy(update={"pretrained": f"{stage_files.START}/a/b"})}
    )
    teaching.train_without("student", None, None, None, start, lesson(), seed=0)
    assert not (stage_files.stage("student", "train") / stage_files.UNTAUGHT).exists()


def test_the_report_and_the_card_say_who_taught_and_what_it_gained(project):
    for stage in (train_stage, export, quantize):
        stage.main("student")
    stage_files.write_csv(project / "data/student/classes.csv", ["class", "split", "count"], [["dark", "train", 1]])
    evaluate.main("student")
    baselines = json.loads((project / "models/student/report.json").read_text())["baselines"]
    version = bundle.read(project / "models/teacher/bundle").version
    assert baselines["teacher"] == {"model": "teacher", "version": version}
    assert baselines["gain_over_untaught"]["low"] > 0
    stage_files.write_json(project / "data/student/ingest.json", {"set_aside": {}})
    (project / "data/catalog.yaml").write_text("{}")
    calibrate.main("student")
    package.main("student")
    card = (project / "models/student/bundle/MODEL_CARD.md").read_text()
    assert f"Gain by the teacher `teacher` (version {version[:12]})" in card
    assert "the same training without a teacher" in card
    teaching.train_without("student", None, None, None, settings.model("teacher")[1], teaching.Lesson(None), seed=0)
    evaluate.main("student")
    assert "teacher" not in json.loads((project / "models/student/report.json").read_text())["baselines"]


def test_another_version_and_a_missing_bundle_are_refused(project):
    params(project, {"model": "teacher", "version": "0" * 12})
    with pytest.raises(LooplineError, match=r"has the version .*, but params.yaml says 000000000000"):
        lesson()
    (project / "models/teacher/bundle").rename(project / "away")
    with pytest.raises(LooplineError, match="run dvc repro package@teacher first"):
        lesson()


def test_other_classes_are_refused(project):
    path = stage_files.manifest("student")
    others = [
        sample.__class__(**(vars(sample) | {"label": {"bright": "light", "dark": "night"}[sample.label]}))
        for sample in samples(0)
    ]
    manifest.write(path, others, task="classification", labels=("light", "night"))
    with pytest.raises(LooplineError, match="the data are for classification with light, night"):
        lesson()


def collected(project, capsys):
    """Images of a size that no labelled sample has, one that a test sample has, and one that is broken; and their file."""
    folder = project / "more"
    folder.mkdir()
    for value in range(0, 256, 4):
        (folder / f"{value}.png").write_bytes(brightness.png(value, side=9))
    (folder / "copy.png").write_bytes(brightness.png(2))
    (folder / "broken.png").write_bytes(b"no image")
    assert main(["data", "unlabelled", "student", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("64 samples in data/unlabelled/student-")
    assert "left out: 1 x copy of a sample in the split test" in printed
    assert "left out: 1 x unreadable image" in printed
    (file,) = (project / "data/unlabelled").iterdir()
    assert f"`unlabelled: {file.relative_to(project)}`" in printed
    return folder, str(file.relative_to(project))


def test_unlabelled_samples_are_answered_by_the_teacher_alone_and_counted(project, capsys):
    version = bundle.read(project / "models/teacher/bundle").version[:12]
    place, file = collected(project, capsys)
    params(project, {"model": "teacher", "version": version, "weight": 0.5, "unlabelled": file})
    train = manifest.load_split(stage_files.manifest("student"), "train")
    given = lesson()
    assert given.teacher["unlabelled"] == 64
    assert given.train.ids[: len(train.ids)] == train.ids
    assert (given.train.targets[len(train.ids) :] == UNLABELLED).all()
    bright = given.more["taught"].probabilities[len(train.ids) :, train.labels.index("bright")]
    assert ((bright > 0.5) == [int(path.stem) > 127 for path in named(place, given.train.ids[len(train.ids) :])]).all()
    train_stage.main("student")
    history = (project / "models/student/history.csv").read_text()
    assert "nan" not in history


def named(folder, ids):
    """The files with these ids, in their order."""
    files = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in folder.iterdir()}
    return [files[identity] for identity in ids]


def test_a_batch_of_unlabelled_samples_only_has_the_teacher_s_loss_and_labels_count_by_their_share():
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(size=(4, 3))).float()
    given = Taught(random.dirichlet(np.ones(3), 4).astype(np.float32), 2.0, 0.25)
    rows, loss_of = torch.arange(4), torch.nn.CrossEntropyLoss()
    none = torch.full((4,), UNLABELLED)
    teacher = given.loss(logits, rows)
    assert given.mixed(logits, rows, none, loss_of) == pytest.approx(float(0.25 * teacher))
    some = torch.tensor([2, UNLABELLED, UNLABELLED, UNLABELLED])
    alone = loss_of(logits[:1], some[:1])
    assert given.mixed(logits, rows, some, loss_of) == pytest.approx(float(0.75 * alone / 4 + 0.25 * teacher))


def test_a_sample_that_has_since_come_into_the_test_split_is_left_out(project, capsys):
    version = bundle.read(project / "models/teacher/bundle").version[:12]
    _, file = collected(project, capsys)
    params(project, {"model": "teacher", "version": version, "unlabelled": file})
    sample = write_with(brightness.png(4, side=9), "test")
    given = lesson()
    assert given.teacher["unlabelled"] == 63
    assert sample.id not in given.train.ids


def test_missing_and_foreign_files_of_unlabelled_samples_are_named(project):
    version = bundle.read(project / "models/teacher/bundle").version[:12]
    params(project, {"model": "teacher", "version": version, "unlabelled": "nowhere"})
    with pytest.raises(LooplineError, match=r"student: train\.teacher\.unlabelled: there is no file nowhere"):
        lesson()
    for place, content in (("folder", None), ("foreign.parquet", b"PAR1"), ("table.csv", b"text\na")):
        (project / place).write_bytes(content) if content else (project / place).mkdir()
        params(project, {"model": "teacher", "version": version, "unlabelled": place})
        with pytest.raises(LooplineError, match="make it with loopline data unlabelled student FOLDER"):
            lesson()
    text = manifest.Sample(id="a", source="s", path="t.csv:2", split="", text="a film")
    manifest.write(project / "texts.parquet", [text], task="text", labels=())
    params(project, {"model": "teacher", "version": version, "unlabelled": "texts.parquet"})
    with pytest.raises(LooplineError, match="made for the task text: classification needs images"):
        lesson()


def test_a_probe_has_no_teacher(project):
    content = yaml.safe_load((project / "params.yaml").read_text())
    change = {"probe": True, "pretrained": "imagenet", "architecture": "efficientnet-lite0"}
    content["models"]["student"]["train"] |= change
    content["models"]["student"]["input"] = {"height": 64, "width": 64, "channels": 3}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(LooplineError, match="a probe learns from labels only"):
        settings.model("student")
