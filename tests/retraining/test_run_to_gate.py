"""`loopline retrainer run`: one run up to its gate, with a real worktree, journal, registry and gate; `train` copies a bundle."""

import shutil
import signal
import subprocess
import sys

import brightness
import prometheus
import pytest
import retrainers
import yaml
from retrainers import git

from loopline.data import manifest
from loopline.release import decisions, registry
from loopline.retraining.guard import Alert
from loopline.retraining.run_store import RetrainerStore

COMMITTED = {step["name"]: step for step in retrainers.POLICY["here"]}
TRAIN = """echo train >> started
test ! -e block || sleep 600
test ! -e fail || { echo the disk is full; exit 3; }
cp -r trained/. "$1"
"""
STEPS = [
    COMMITTED["worktree"],
    COMMITTED["labels"],
    {"name": "train", "run": "/bin/sh train {worktree}", "at": "repository"},
    COMMITTED["commit"],
    COMMITTED["gate"],
    {"name": "rollout", "run": "/usr/bin/touch rolled-out", "at": "repository"},
]


@pytest.fixture(scope="module")
def registries(tmp_path_factory):
    """(address of a registry whose champion has its threshold at 160, address of an empty one)."""
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.delenv("LOOPLINE_DECISIONS", raising=False)
        (folder / "params.yaml").write_text(brightness.params())
        brightness.write_manifest(folder / "data/classifier/manifest.parquet")
        assert registry.champion("classifier", folder / "none") is None
        shutil.copy(folder / "mlflow.db", folder / "empty.db")
        registry.register(retrainers.threshold_bundle(folder / "models/classifier/bundle", 160).folder)
        assert registry.promote("classifier").promote
    return tuple(f"sqlite:///{folder}/{name}.db" for name in ("mlflow", "empty"))


@pytest.fixture
def repository(tmp_path, monkeypatch, registries):
    """A repository with a policy and a journal, in which `train` yields a model with its threshold at 128."""
    home = tmp_path / "repository"
    retrainers.project(home)
    monkeypatch.chdir(home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registries[0])
    for name in ("LOOPLINE_DECISIONS", "LOOPLINE_ACTOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(retrainers, "FREE", {"where": "github", "github": {"repository": "owner/name"}})
    retrainers.Retrainer(home, steps=STEPS)  # writes policy.yaml
    (home / "train").write_text(TRAIN)
    (home / ".dvc").mkdir()
    (home / ".dvc/config").touch()
    git(home, "add", "-f", ".dvc/config")
    git(home, "commit", "--quiet", "-m", "dvc")
    _, samples = retrainers.shifted(tmp_path / "journal")
    manifest.write(
        home / "trained/data/classifier/manifest.parquet", samples, task="classification", labels=brightness.LABELS
    )
    (home / "trained/data/batches/classifier").mkdir(parents=True)
    (home / "trained/data/batches/classifier/v2.dvc").touch()
    trains(home, 128)
    return home


def trains(home, threshold):
    shutil.rmtree(home / "trained/models", ignore_errors=True)
    retrainers.threshold_bundle(home / "trained/models/classifier/bundle", threshold)


def command(model="classifier", run="mine", journal="../journal", policy="policy.yaml"):
    words = [sys.executable, "-m", "loopline.cli", "retrainer", "--policy", policy]
    return [*words, "run", model, run, "--journal", str(journal)]


def call(**options):
    return subprocess.run(command(**options), capture_output=True, text=True)


def started(home):
    return (home / "started").read_text().split() if (home / "started").exists() else []


def runs(home):
    store = RetrainerStore(home / ".loopline/retrainer")
    try:
        return [(run.id, run.result) for run in store.runs()]
    finally:
        store.close()


def test_an_accepted_run_ends_with_the_gate_and_the_same_call_repeats_nothing(repository, tmp_path):
    done = call(journal=f"file://{tmp_path}/journal")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mine: succeeded; evidence in reports/retraining/mine/report.md" in done.stdout
    assert "64 labelled samples" in done.stdout, "the steps' output is shown"
    assert "**accepted**" in (repository / "reports/retraining/mine/report.md").read_text()
    gate, end = decisions.read().records
    assert (gate.action, end.action, end.actor) == ("accept", "retrain-succeeded", "retrainer")
    assert gate.evidence["figures"]["present"]["old"]["share"] == 0.4
    assert not (repository / "rolled-out").exists()
    assert git(repository, "log", "-1", "--format=%s", "retrain/mine") == "Retraining mine of classifier"
    assert not (repository / ".loopline/retrainer/worktrees/mine").exists()
    shutil.rmtree(tmp_path / "journal")
    again = call(journal="gone")
    assert (again.returncode, again.stdout) == (0, done.stdout.splitlines(keepends=True)[-1])
    assert started(repository) == ["train"]
    assert len(decisions.read().records) == 2


def test_a_refused_run_exits_with_2_each_time(repository):
    trains(repository, 250)
    for _ in range(2):
        done = call()
        assert done.returncode == 2, done.stderr
        assert "mine: refused; evidence in" in done.stdout
    assert "**refused**" in (repository / "reports/retraining/mine/report.md").read_text()
    assert started(repository) == ["train"]


def test_a_killed_run_resumes_at_its_step_and_leaves_no_process_behind(repository):
    (repository / "block").touch()
    first = subprocess.Popen(command(), stdout=subprocess.DEVNULL)
    prometheus.eventually(lambda: started(repository))
    busy = call()
    assert (busy.returncode, "another retrainer works in" in busy.stderr) == (1, True)
    first.send_signal(signal.SIGKILL)
    first.wait()
    (repository / "block").unlink()
    done = call()
    assert done.returncode == 0, done.stdout + done.stderr
    assert started(repository) == ["train", "train"]
    log = repository / ".loopline/retrainer/runs/mine/worktree.log"
    assert log.read_text().count("$ loopline") == 1
    assert "exit" not in (repository / ".loopline/retrainer/runs/mine/train.log").read_text()


def test_a_stopped_run_says_how_to_resume_it(repository):
    (repository / "block").touch()
    process = subprocess.Popen(command(), stdout=subprocess.PIPE, text=True)
    prometheus.eventually(lambda: started(repository))
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "mine: stopped in step train; the same command resumes it; logs in" in output


def test_a_failed_step_fails_the_run_once(repository):
    (repository / "fail").touch()
    done = call()
    assert done.returncode == 1
    assert "the disk is full" in done.stdout
    (repository / "fail").unlink()
    assert call().returncode == 1
    assert started(repository) == ["train"]
    assert runs(repository) == [("mine", "failed")]


def test_without_a_champion_the_floors_decide(repository, monkeypatch, registries):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registries[1])
    done = call()
    assert done.returncode == 0, done.stdout + done.stderr
    report = (repository / "reports/retraining/mine/report.md").read_text()
    assert "the first champion: it holds every floor" in report
    assert "| champion" not in report


def test_a_version_that_was_rolled_back_before_is_refused(repository):
    version = retrainers.bundle.read(repository / "trained/models/classifier/bundle").version
    decisions.append(
        "classifier", "rollback", bundle="a", champion="a", reasons=["slow"], evidence={"withdrawn": version}
    )
    assert call().returncode == 2
    assert "it was rolled back before" in (repository / "reports/retraining/mine/report.md").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "nobody"}, "no model 'nobody'"),
        ({"journal": "nowhere"}, "nowhere has no journal index"),
        ({"journal": "file:///nowhere/at-all"}, "the journal at file:///nowhere/at-all cannot be copied"),
        ({"run": "../../owned"}, "'../../owned' is no run's id"),
        ({"run": "an-alert"}, "an-alert is the id of an alert"),
        ({"policy": "gateless.yaml"}, "add `gate: true` to the step under `here:`"),
    ],
)
def test_a_mistake_is_one_message_and_starts_no_run(repository, options, words):
    store = RetrainerStore(repository / ".loopline/retrainer")
    store.receive([("an-alert", Alert(model="classifier", name="LabelledHarm", version=""))], "alertmanager")
    store.close()
    content = yaml.safe_load((repository / "policy.yaml").read_text()) | {"here": STEPS[:3]}
    (repository / "gateless.yaml").write_text(yaml.safe_dump(content))
    done = call(**options)
    assert done.returncode == 1
    assert done.stderr.startswith("loopline: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert runs(repository) == []
