"""A search for better settings: what may be searched, and that neither workers nor kills change the table of trials."""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import brightness
import numpy as np
import pytest
import yaml

from loopline import settings
from loopline.cli import main
from loopline.data import manifest
from loopline.errors import LooplineError
from loopline.release import mlflow_store
from loopline.stages import stage_files
from loopline.tuning import mlflow_runs, space, trial, workers
from loopline.tuning.search import Search, table
from loopline.tuning.trial import Outcome

SMALL = {"epochs": 3, "patience": 3, "batch_size": 16, "width": 4, "rotate": 0, "shift": 0, "scale": 0}
SPACE = {
    "train.learning_rate": {"low": 0.0001, "high": 0.1, "log": True},
    "train.width": {"low": 4, "high": 8},
    "train.class_weights": {"choices": [True, False]},
}


def params(folder, tune=None, **train):
    """Settings of a model that learns badly as it is: its learning rate is far too low."""
    content = yaml.safe_load(brightness.params())
    model = content["models"]["classifier"] | {"input": {"height": 8, "width": 8, "channels": 1}}
    model["train"] |= SMALL | {"learning_rate": 0.0001} | train
    model["tune"] = {"space": SPACE, "trials": 4, "generation": 2} if tune is None else tune
    content["models"] = {"classifier": model}
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a manifest of bright and dark images, of which every fourth validates, and every fourth tests."""
    return written(tmp_path, monkeypatch)


def written(folder, monkeypatch):
    there(folder, monkeypatch)
    params(folder)
    samples = []
    for value in range(256):
        content = brightness.png(value)
        samples.append(
            manifest.Sample(
                id=hashlib.sha256(content).hexdigest(),
                source="s",
                path=f"{value}.png",
                split=("train", "val", "train", "test")[value % 4],
                label="bright" if value > 127 else "dark",
                image=content,
                width=8,
                height=8,
            )
        )
    path = stage_files.manifest("classifier")
    path.parent.mkdir(parents=True)
    manifest.write(path, samples, task="classification", labels=brightness.LABELS)
    return folder


def there(folder, monkeypatch):
    """Work in the folder, with an MLflow store of its own."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")


def search(run, **change):
    everything, model = settings.model("classifier")
    given = {"name": "classifier", "model": model, "seed": everything.seed, "folder": Path(".loopline/tune/classifier")}
    given |= {"manifest": stage_files.manifest("classifier"), "told": lambda *_: None}
    found = Search(**given | change)
    found.run = run
    return found


def quality(job):
    """A figure that is a function of the settings alone, for searches without trainings."""
    return 1 / (1 + abs(np.log(job.settings["train"]["learning_rate"] / 0.01)))


def curve(job, epochs=3):
    """An outcome as `trial.run` gives it, with its rule for rungs."""
    figures = []
    for epoch in range(1, epochs + 1):
        figures.append(round(quality(job) * epoch / epochs, 6))
        if figures[-1] < job.cutoffs.get(str(epoch), -1):
            return Outcome(state="stopped", value=figures[-1], epoch=epoch, curve=tuple(figures))
    return Outcome(state="complete", value=figures[-1], epoch=epochs, curve=tuple(figures))


def pure(work):
    for job, folder in work:
        outcome = curve(job)
        trial.write(trial.made(folder), outcome)
        yield job, outcome


def backwards(work):
    return reversed(list(pure(work)))


# What may be searched


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"train.learning_rat": {"low": 0.1, "high": 1}}, "there is no setting train.learning_rat: train has "),
        ({"split.val": {"low": 0.1, "high": 0.2}}, "split.val cannot be tuned: keys begin with train or input"),
        ({"learning_rate": {"low": 0.1, "high": 0.2}}, "learning_rate cannot be tuned"),
        ({"train.width": {"low": 4.5, "high": 8}}, "train.width is a whole number"),
        ({"train.learning_rate": {"low": -1, "high": 1}}, "train.learning_rate"),
        ({"train.architecture": {"choices": ["residual", "resnet"]}}, "resnet"),
        ({"train.learning_rate": {"low": 1, "high": 0.1}}, "low must be less than high"),
        ({"train.learning_rate": {"low": 0, "high": 0.1, "log": True}}, "log: true needs a low above 0"),
        ({"train.learning_rate": {"low": 0.1, "hihg": 0.2}}, "hihg"),
        ({}, "space"),
    ],
)
def test_a_wrong_space_is_one_message_that_names_the_key(project, capsys, space, words):
    params(project, {"space": space})
    assert main(["tune", "classifier"]) == 1
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message


def test_a_model_without_a_space_says_how_to_write_one(project, capsys):
    content = yaml.safe_load((project / "params.yaml").read_text())
    del content["models"]["classifier"]["tune"]
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    assert main(["tune", "classifier"]) == 1
    assert "train.learning_rate: {low:" in capsys.readouterr().err


def test_whole_numbers_stay_whole_and_a_share_from_0_to_1_does_not(project):
    params(project, {"space": {"train.width": {"low": 4, "high": 8}, "train.erase": {"low": 0, "high": 1}}})
    kinds = {key: type(value).__name__ for key, value in space.distributions("classifier", model()).items()}
    assert kinds == {"train.width": "IntDistribution", "train.erase": "FloatDistribution"}


def model():
    return settings.model("classifier")[1]


def test_the_search_changes_nothing_that_the_pipeline_writes(project):
    before = stage_files.parameters(0, model())
    params(project, {"space": {"train.width": {"low": 4, "high": 8}}})
    assert stage_files.parameters(0, model()) == before


# What is proposed


def test_the_table_does_not_depend_on_the_order_in_which_trials_end(project):
    tables = []
    for run in (pure, backwards):
        found = search(run, folder=Path(run.__name__))
        tables.append(table(found.go(14)))
    assert tables[0] == tables[1]


def test_a_search_that_is_interrupted_anywhere_ends_with_the_same_table(project):
    whole = table(search(pure, folder=Path("whole")).go(10))

    def killed(work):
        for number, each in enumerate(pure(work)):
            if number == 1:
                raise KeyboardInterrupt
            yield each

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            search(killed, folder=Path("killed")).go(10)
    trained = []

    def counted(work):
        trained.extend(work)
        return pure(work)

    assert table(search(counted, folder=Path("killed")).go(10)) == whole
    assert len(trained) < 10 - 2


def test_the_first_trial_is_params_yaml_and_later_ones_learn_from_earlier_ones(project):
    rows = search(pure).go(40)
    assert rows[0].values == {"train.learning_rate": 0.0001, "train.width": 4, "train.class_weights": True}
    random, informed = ([quality_of(row) for row in rows[start : start + 16]] for start in (1, 24))
    assert np.median(informed) > np.median(random) + 0.1


def quality_of(row):
    return 1 / (1 + abs(np.log(row.values["train.learning_rate"] / 0.01)))


def test_values_outside_the_space_are_still_the_first_trial(project):
    params(project, {"space": SPACE | {"train.learning_rate": {"low": 0.001, "high": 0.1}}, "generation": 3})
    found = search(pure)
    rows = found.go(6)
    assert rows[0].values["train.learning_rate"] == 0.0001
    assert len(found.study.trials) == 5


def test_the_worse_half_stops_at_a_rung_and_no_trial_of_the_first_generation_does(project):
    params(project, {"space": SPACE, "generation": 8, "rungs": [1, 2]})
    rows = search(pure).go(32)
    assert all(row.outcome.state == "complete" for row in rows[:8])
    stopped = [row for row in rows if row.outcome.state == "stopped"]
    assert stopped
    median = np.median([row.outcome.curve[0] for row in rows[:8]])
    for row in rows[8:16]:
        assert (len(row.outcome.curve) == 1) == (row.outcome.curve[0] < median)


def test_values_that_are_invalid_together_are_a_failed_trial(project):
    # An efficientnet needs three channels, which no single value shows.
    space = {"train.probe": {"choices": [False, True]}, "train.width": {"low": 4, "high": 8}}
    params(project, {"space": space}, pretrained=None)
    with pytest.raises(LooplineError, match=r"train\.probe needs train\.pretrained"):
        search(pure).go(4)


def test_a_search_in_which_every_trial_fails_says_why(project):
    def failing(work):
        return ((job, Outcome(state="failed", reason="no luck")) for job, _ in work)

    with pytest.raises(LooplineError, match="none of 4 trials gave a figure: no luck"):
        search(failing).go(4)


# Real trainings


def rows_of(folder):
    return list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A folder in which a search has run, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        folder = written(tmp_path_factory.mktemp("searched"), patch)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert main(["tune", "classifier", "--workers", "2"]) == 0
    return folder, printed.getvalue()


def test_a_search_finds_better_settings_and_the_test_split_proves_it(searched):
    project, out = searched
    assert re.search(r"trial \d complete after 3 epochs: accuracy [\d.]+, the best is [\d.]+, [\d a-z]+ left", out)
    assert "proven gain: accuracy" in out
    folder = project / "reports/tune/classifier"
    rows = rows_of(folder)
    assert [row["trial"] for row in rows] == list("0123")
    best = max(rows, key=lambda row: float(row["value"]))
    assert float(best["value"]) > float(rows[0]["value"]) + 0.2
    command = re.search(r"dvc exp run package@classifier .*", out)[0]
    assert f"-S models.classifier.train.learning_rate={float(best['train.learning_rate']):.6g}" in command
    page = (folder / "report.md").read_text()
    assert command in page
    for name in re.findall(r"\]\((\w+\.png)\)", page):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"


def test_a_search_is_one_parent_run_with_a_child_for_each_trial_and_is_recorded_once(searched, monkeypatch):
    project, _ = searched
    there(project, monkeypatch)
    store = mlflow_store.client()
    runs = store.search_runs([store.get_experiment_by_name("classifier").experiment_id])
    (parent,) = [run for run in runs if mlflow_runs.PARENT not in run.data.tags]
    children = [run for run in runs if run.data.tags.get(mlflow_runs.PARENT) == parent.info.run_id]
    assert len(children) == 4
    assert len(store.get_metric_history(children[0].info.run_id, "val_accuracy")) == 3
    before = (project / "reports/tune/classifier/trials.csv").read_bytes()
    assert main(["tune", "classifier"]) == 0  # nothing is trained
    assert (project / "reports/tune/classifier/trials.csv").read_bytes() == before
    assert len(store.search_runs([parent.info.experiment_id])) == 5


def test_a_best_trial_whose_weights_were_cleared_is_trained_again(searched, monkeypatch):
    project, _ = searched
    there(project, monkeypatch)
    page = (project / "reports/tune/classifier/report.md").read_text()
    for weights in project.glob(".loopline/tune/classifier/*/train/model.safetensors"):
        weights.unlink()
    assert main(["tune", "classifier", "--out", "again"]) == 0
    assert (project / "again/report.md").read_text() == page


def test_kills_of_trials_and_of_the_search_do_not_change_the_table(searched, project):
    command = [Path(sys.executable).with_name("loopline"), "tune", "classifier", "--workers", "2", "--out", "stormy"]
    random, process = np.random.default_rng(0), subprocess.Popen(command)
    for kill in range(5):
        while not (children := children_of(process.pid)):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(float(random.uniform(0, 1.0)))  # an epoch is later: importing torch takes longer
        if kill in (1, 3):
            process.kill()
            process.wait()
            process = subprocess.Popen(command)
        else:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(int(random.choice(children)), signal.SIGKILL)
    assert process.wait(timeout=300) == 0
    calm = searched[0] / "reports/tune/classifier/trials.csv"
    assert (project / "stormy/trials.csv").read_bytes() == calm.read_bytes()


def children_of(pid):
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []


def test_a_loss_that_is_not_a_number_is_a_failed_trial_and_the_search_goes_on(project, capsys):
    params(project, {"space": {"train.learning_rate": {"choices": [0.0001, 1e30]}}, "generation": 4})
    assert main(["tune", "classifier", "--trials", "6", "--workers", "2"]) == 0
    rows = rows_of(project / "reports/tune/classifier")
    failed = [row for row in rows if float(row["train.learning_rate"]) > 1]
    assert failed
    assert all(row["state"] == "failed" and "not a number" in row["reason"] for row in failed)
    assert "no trial was better than params.yaml" in capsys.readouterr().out


def test_a_trial_that_kills_its_process_each_time_is_a_failed_trial(project, monkeypatch):
    found = search(lambda work: workers.processes(work, 2))
    killer = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    real = subprocess.Popen
    monkeypatch.setattr(workers.subprocess, "Popen", lambda _, **more: real(killer, **more))
    with pytest.raises(LooplineError, match="its process was killed 3 times"):
        found.go(2)


def test_a_defect_in_a_training_ends_the_search_with_the_end_of_its_log(project, monkeypatch):
    real = subprocess.Popen
    broken = [sys.executable, "-c", "raise RuntimeError('a defect')"]
    monkeypatch.setattr(workers.subprocess, "Popen", lambda _, **more: real(broken, **more))
    with pytest.raises(LooplineError, match="a defect"):
        search(lambda work: workers.processes(work, 2)).go(2)


def test_a_trial_ends_when_its_search_has_ended(project):
    _, configured = settings.model("classifier")
    job = trial.TrialJob(
        number=0,
        model="classifier",
        settings=configured.model_dump(mode="json"),
        seed=0,
        manifest=str(stage_files.manifest("classifier")),
        code=trial.code(),
    )
    with pytest.raises(SystemExit) as ended:
        trial.run(job, project / "trial", alive=lambda: False)
    assert ended.value.code == trial.ORPHAN
    assert list((project / "trial").rglob("checkpoint.pt"))


def test_two_searches_of_one_model_do_not_run_at_once(project, capsys):
    from loopline.lib import locks

    with locks.held(Path(".loopline/tune/classifier/lock")):
        assert main(["tune", "classifier"]) == 1
    assert "another `loopline tune classifier` runs here" in capsys.readouterr().err


def test_an_empty_test_split_is_an_error_before_the_search(project, capsys):
    path = stage_files.manifest("classifier")
    loaded = manifest.table(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    split = ["train" if each == "test" else each for each in loaded["split"].to_pylist()]
    pq.write_table(loaded.set_column(loaded.schema.get_field_index("split"), "split", pa.array(split)), path)
    assert main(["tune", "classifier"]) == 1
    assert "manifest.parquet has no test split" in capsys.readouterr().err
    assert not list(Path(".loopline/tune").rglob("outcome.json"))


def test_outcomes_survive_their_file(tmp_path):
    outcome = Outcome(state="complete", value=0.5, epoch=2, curve=(0.4, 0.5))
    trial.write(tmp_path, outcome)
    assert trial.read(tmp_path) == outcome
    assert json.loads((tmp_path / "outcome.json").read_text())["curve"] == [0.4, 0.5]
