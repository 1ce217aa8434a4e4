"""A run: the policy's steps, the worktree, the evidence, GitHub, and ending left-over processes."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import brightness
import journals
import prometheus
import psutil
import pytest
import retrainers
import yaml
from answering import Server
from retrainers import git

from loopline import cli
from loopline.data import manifest
from loopline.errors import LooplineError
from loopline.release import bundle, decisions
from loopline.retraining import github, guard, policy, run_report, runs, worktree
from loopline.retraining.run_store import RetrainerStore, Run
from loopline.retraining.runs import Place

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "monitoring/retraining.yaml"
PLACES = {name: f"<{name}>" for name in policy.PLACES} | {
    "model": "classifier",
    "run": "classifier-1",
    "version": "abc",
}


def run(**changes):
    values = {"id": "classifier-1", "model": "classifier", "version": "", "started": 0.0, "ended": None, "result": None}
    return Run(**values | {"step": None, "pid": None, "created": None, "kills": 0} | changes)


# The policy


def written(tmp_path, change):
    content = yaml.safe_load(COMMITTED.read_text(encoding="utf-8"))
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(content | change))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cooldown": 3}, "cooldown: Extra inputs"),
        ({"alerts": []}, "alerts: "),
        ({"where": "github"}, "needs github"),
        ({"here": [{"name": "a", "run": "rm {home}"}]}, "{home} is not a place"),
        ({"here": [{"name": "a", "run": "x", "again": "b"}]}, "is not an earlier step"),
        ({"here": [{"name": "a", "run": "x"}, {"name": "a", "run": "y"}]}, "the same name"),
        ({"here": [{"name": "../a", "run": "x"}]}, "here.0.name"),
        ({"here": [{"name": name, "run": "x", "gate": True} for name in "ab"]}, "a run has one gate"),
        (
            {"here": [{"name": "a", "run": "x", "own_time": True}, {"name": "b", "run": "y"}]},
            "only the last step may have own_time",
        ),
    ],
)
def test_a_wrong_policy_is_refused_with_the_name_of_the_key(tmp_path, change, words):
    with pytest.raises(LooplineError, match=re.escape(words)):
        policy.load(written(tmp_path, change))


def test_a_missing_or_malformed_policy_is_reported(tmp_path):
    with pytest.raises(LooplineError, match="not found"):
        policy.load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(LooplineError, match="not valid YAML"):
        policy.load(tmp_path / "bad.yaml")


def test_the_verbs_of_the_committed_policy_exist():
    github_policy = {"where": "github", "github": {"repository": "owner/name"}}
    steps = [*policy.load(COMMITTED).steps]
    content = yaml.safe_load(COMMITTED.read_text(encoding="utf-8")) | github_policy
    steps += policy.RetrainingPolicy.model_validate(content).steps
    commands = [step.command(PLACES) for step in steps]
    arguments = [words[1:] for words in commands if words[0] == "loopline"]
    assert len(arguments) >= 7
    for words in arguments:
        assert isinstance(cli.parser().parse_args(words), argparse.Namespace)  # exits on words that it does not know


def test_a_run_up_to_the_gate_has_the_worker_s_steps_also_where_github_trains():
    committed = policy.load(COMMITTED)
    github_policy = committed.model_copy(update={"where": "github"})
    assert github_policy.until_gate().steps == committed.steps[:-1]
    assert committed.steps[-1].name == "rollout"


@pytest.mark.parametrize(("name", "last"), [("evidence", "evidence"), ("mine", None)])
def test_an_older_file_s_gate_is_called_evidence_and_another_name_needs_the_key(tmp_path, name, last):
    steps = [{"name": each, "run": "x"} for each in ("train", name, "rollout")]
    older = policy.load(written(tmp_path, {"here": steps}))
    if last:
        assert older.until_gate().steps[-1].name == last
    else:
        with pytest.raises(LooplineError, match="add `gate: true` to the step under `here:`"):
            older.until_gate()


def test_the_committed_rollout_promotes_in_the_registry_and_takes_its_inputs_from_the_run_s_journal():
    (step,) = (step for step in policy.load(COMMITTED).steps if step.name == "rollout")
    assert step.own_time, "if the run's timeout ended it, a canary would stay unwatched"
    options = cli.parser().parse_args(step.command(PLACES)[1:])
    assert options.register
    assert options.journal == Path("<journal>")


def test_a_value_that_is_filled_in_stays_one_word():
    step = policy.Step(name="a", run="echo '{journal} x' {model}")
    assert step.command(PLACES | {"journal": "a b; rm"}) == ["echo", "a b; rm x", "classifier"]


# The worktree


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git and DVC repository with params.yaml and a batch that only DVC has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    retrainers.project(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], check=True)
    (tmp_path / "params.yaml").write_text((ROOT / "tests/params.yaml").read_text(encoding="utf-8"))
    batch = tmp_path / "data/batches/classifier/v2"
    batch.mkdir(parents=True)
    (batch / "a.txt").write_text("a")
    subprocess.run([sys.executable, "-m", "dvc", "add", "--quiet", str(batch)], check=True)
    git(
        tmp_path,
        "add",
        "-f",
        ".dvc/config",
        "params.yaml",
        "data/batches/classifier/v2.dvc",
        "data/batches/classifier/.gitignore",
    )
    git(tmp_path, "commit", "--quiet", "-m", "data")
    return tmp_path


def test_a_worktree_has_the_repository_s_data_and_its_cache(repository):
    folder = worktree.make(repository, "classifier-1", "classifier", "scratch")
    assert (folder / "data/batches/classifier/v2/a.txt").read_text() == "a"
    done = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], cwd=folder, capture_output=True, text=True)
    assert done.stdout.strip() == str(repository / ".dvc/cache")
    assert git(folder, "branch", "--show-current") == "retrain/classifier-1"
    worktree.remove(repository, folder)
    assert not folder.exists()
    assert "retrain/classifier-1" in git(repository, "branch")


def test_a_worktree_begins_with_the_repository_s_uncommitted_changes(repository):
    params, head = repository / "params.yaml", git(repository, "rev-parse", "HEAD")
    params.write_text(params.read_text(encoding="utf-8") + "# of mine\n", encoding="utf-8")
    for name in ("data/mine/ingest.json", "models/mine/report.json", "data/photos/large.png", "notes.txt"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("{}")
    (repository / ".gitignore").write_text(".loopline/\n")
    (repository / "staged.txt").write_text("mine")
    git(repository, "add", "staged.txt")
    before = git(repository, "status", "--porcelain")
    folder = worktree.make(repository, "classifier-1", "classifier", "scratch")
    assert (folder / "params.yaml").read_text(encoding="utf-8").endswith("# of mine\n")
    assert {name for name in ("data/mine/ingest.json", "models/mine/report.json") if (folder / name).exists()}
    assert not (folder / "data/photos").exists(), "a data set may be large, and the run finds it in the repository"
    assert not (folder / "notes.txt").exists()
    assert git(folder, "status", "--porcelain") == ""
    assert git(folder, "rev-parse", "HEAD~1") == git(repository, "rev-parse", "HEAD") == head
    assert git(repository, "status", "--porcelain") == before, "nothing is staged or committed in the repository"


def test_a_new_worktree_discards_only_the_interrupted_attempt(repository):
    git(repository, "tag", "data/classifier/v1")
    folder = worktree.make(repository, "classifier-1", "classifier", "scratch")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "half a data version")
    git(folder, "tag", "data/classifier/v3")
    (folder / "left.txt").write_text("left")
    folder = worktree.make(repository, "classifier-1", "classifier", "scratch")
    assert git(repository, "tag") == "data/classifier/v1"
    assert git(folder, "rev-parse", "HEAD") == git(repository, "rev-parse", "HEAD")
    assert not (folder / "left.txt").exists()


def test_a_new_worktree_keeps_other_data_versions_after_head_moved_back(repository):
    git(repository, "commit", "--quiet", "--allow-empty", "-m", "a data version of somebody else")
    git(repository, "tag", "data/classifier/v2")
    folder = worktree.make(repository, "classifier-1", "classifier", "scratch")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "half a data version")
    git(folder, "tag", "data/classifier/v3")
    git(repository, "reset", "--quiet", "--hard", "HEAD~1")
    worktree.make(repository, "classifier-1", "classifier", "scratch")
    assert git(repository, "tag") == "data/classifier/v2"
    worktree.remove(repository, folder)
    git(repository, "branch", "--quiet", "-D", "retrain/classifier-1")
    assert "retrain/classifier-1" not in (repository / ".git/config").read_text(), (
        "the setting is deleted with its branch"
    )


def test_a_start_from_the_champion_sets_a_relative_path_to_its_weights(repository):
    with pytest.raises(LooplineError, match="dvc checkout"):
        worktree.make(repository, "classifier-1", "classifier", "champion")
    weights = repository / "models/classifier/train/model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    folder = worktree.make(repository, "classifier-1", "classifier", "champion")
    before, after = (
        path.read_text(encoding="utf-8").splitlines() for path in (ROOT / "tests/params.yaml", folder / "params.yaml")
    )
    (changed,) = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    value = yaml.safe_load("\n".join(after))["models"]["classifier"]["train"]["pretrained"]
    assert changed[1] == changed[0].replace("null", value)
    assert value.startswith(".loopline/start/")
    assert (folder / value).read_bytes() == b"weights"


@pytest.mark.parametrize("model", ["classifier", "detector", "text"])
def test_every_model_s_training_can_start_from_weights(model):
    text = (ROOT / "tests/params.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(worktree.pretrained(text, model, "a/b"))["models"]
    assert [content[name]["train"]["pretrained"] for name in content] == [
        ("a/b" if name == model else None) for name in content
    ]


def test_a_model_without_the_key_pretrained_is_reported():
    with pytest.raises(LooplineError, match=r"models\.other\.train\.pretrained"):
        worktree.pretrained("models:\n  other:\n    train: {}\n", "other", "x")


# Processes


def test_a_step_gets_the_repository_s_registry_and_no_secret_of_the_retrainer(tmp_path, monkeypatch):
    monkeypatch.setenv("LOOPLINE_RETRAINER_TOKEN", "secret")
    monkeypatch.setenv("LOOPLINE_RETRAINER_HMAC_SECRET_FILE", "secret")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # as a workflow does without a value
    monkeypatch.setenv("LOOPLINE_DECISIONS", "")
    monkeypatch.setenv("LOOPLINE_GITHUB_TOKEN", "github-token")
    place = Place(tmp_path, tmp_path, tmp_path)
    environment = runs.environment(place, tmp_path, "train")
    assert not {"secret", "github-token"} & set(environment.values())
    assert runs.environment(place, tmp_path, "dispatch")["LOOPLINE_GITHUB_TOKEN"] == "github-token"
    assert environment["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert environment["LOOPLINE_DECISIONS"] == f"{tmp_path}/decisions/log.jsonl"


def test_mlflow_keeps_a_run_s_files_in_the_repository_and_not_in_the_worktree(tmp_path):
    (tmp_path / "worktree").mkdir()
    place = Place(tmp_path, tmp_path, tmp_path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    code = (
        "from loopline.release import mlflow_store as m; s = m.client(); "
        "print(s.get_experiment(m.experiment(s, 'a')).artifact_location)"
    )
    step_environment = runs.environment(place, tmp_path / "worktree", "train") | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "worktree",
        env=environment | step_environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().splitlines()[-1].startswith(str(tmp_path / "mlruns")), done.stderr


def test_a_left_over_process_is_ended_but_not_another_one_with_the_same_id():
    left = subprocess.Popen(["/bin/sh", "-c", "sleep 600 & wait"], start_new_session=True)
    created = psutil.Process(left.pid).create_time()
    children = prometheus.eventually(lambda: psutil.Process(left.pid).children())
    runs.end_left_over(run(pid=left.pid, created=created - 1))
    assert left.poll() is None
    runs.end_left_over(run(pid=left.pid, created=created))
    left.wait(30)
    prometheus.eventually(lambda: not children[0].is_running() or children[0].status() == psutil.STATUS_ZOMBIE)
    runs.end_left_over(run(pid=left.pid, created=created))


def test_a_step_does_nothing_if_the_retrainer_dies_before_saving_its_process_id(tmp_path):
    command = [*runs.LAUNCHER, "/usr/bin/touch", str(tmp_path / "done")]
    gate = subprocess.Popen(command, stdin=subprocess.PIPE)
    gate.stdin.close()
    assert gate.wait(30) != 0
    assert not (tmp_path / "done").exists()


# GitHub


class Recorder(Server):
    """A stand-in for GitHub's API of one workflow: it starts runs and lists those that it started."""

    def __init__(self, code=204):
        self.asked, self.titles, self.code = [], [], code
        super().__init__(self._answer)
        self.to = policy.GitHub(repository="owner/name", api=self.url)

    def _answer(self, method, path, headers, body):
        sent = json.loads(body) if body else None
        self.asked.append((method, path, sent, dict(headers)))
        if method == "GET":
            return 200, json.dumps({"workflow_runs": [{"display_title": title} for title in self.titles]}).encode()
        if self.code < 300:
            self.titles.append(f"retrain {sent['inputs']['run']}")
        return self.code, b"" if self.code == 204 else b'{"message": "Resource not accessible"}'


@pytest.fixture
def hub():
    servers = []

    def start(**options):
        servers.append(Recorder(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_github_is_sent_only_ids_and_only_once(hub, monkeypatch):
    monkeypatch.setenv("LOOPLINE_GITHUB_TOKEN", "github-token")
    server = hub()
    assert "was started" in github.dispatch(server.to, model="classifier", run="classifier-1")
    assert "was already started" in github.dispatch(server.to, model="classifier", run="classifier-1")
    assert "was started" in github.dispatch(server.to, model="classifier", run="classifier-12")
    posts = [asked for asked in server.asked if asked[0] == "POST"]
    _, path, body, headers = posts[0]
    assert len(posts) == 2
    assert path == "/repos/owner/name/actions/workflows/retrain.yml/dispatches"
    assert body == {"ref": "main", "inputs": {"model": "classifier", "run": "classifier-1"}}
    assert headers["Authorization"] == "Bearer github-token"


def test_the_workflow_accepts_the_inputs_and_is_found_again_by_its_title(hub, monkeypatch):
    monkeypatch.setenv("LOOPLINE_GITHUB_TOKEN", "github-token")
    text = (ROOT / ".github/workflows/retrain.yml").read_text(encoding="utf-8")
    workflow = yaml.load(text, yaml.BaseLoader)
    server = hub()
    github.dispatch(server.to, model="classifier", run="classifier-1")
    (body,) = (body for method, _, body, _ in server.asked if method == "POST")
    assert set(workflow["on"]["workflow_dispatch"]["inputs"]) == set(body["inputs"])
    server.titles = [workflow["run-name"].replace("${{ inputs.run }}", "classifier-1")]
    assert "already" in github.dispatch(server.to, model="classifier", run="classifier-1")


def test_a_refusal_by_github_and_a_missing_token_are_reported(hub, monkeypatch):
    server = hub(code=403)
    monkeypatch.setenv("LOOPLINE_GITHUB_TOKEN", "github-token")
    with pytest.raises(LooplineError, match=r"refuses with 403: .*Resource not accessible"):
        github.dispatch(server.to, model="classifier", run="classifier-1")
    monkeypatch.delenv("LOOPLINE_GITHUB_TOKEN")
    with pytest.raises(LooplineError, match="LOOPLINE_GITHUB_TOKEN is not set"):
        github.dispatch(server.to, model="classifier", run="classifier-1")


def test_without_a_clone_the_retrainer_can_only_start_runs_on_github(tmp_path, hub, monkeypatch):
    monkeypatch.setenv("LOOPLINE_GITHUB_TOKEN", "github-token")
    (tmp_path / "params.yaml").write_text(brightness.params())
    server = hub()
    retrainers.Retrainer(tmp_path)  # writes a policy with where: here
    words = [sys.executable, "-m", "loopline.cli", "retrainer", "--policy", "policy.yaml"]
    environment = os.environ | {"LOOPLINE_RETRAINER_TOKEN": retrainers.TOKEN}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "`make retrainer` in a clone" in done.stderr
    retrainer = retrainers.Retrainer(tmp_path, where="github", github=server.to.model_dump())
    store = retrainer.store()
    alert = guard.Alert(model="classifier", name="RetrainCandidate", version="")
    store.receive([("classifier-1", alert)], "alertmanager")
    store.decide(store.alerts()[0], guard.RetrainingDecision(guard.Action.RETRAIN, ("a test",)), 0.0, policy.DISPATCH)
    store.close()
    try:
        (run,) = prometheus.eventually(retrainer.start().ended)
    finally:
        retrainer.close()
    assert run.result == "succeeded", run
    assert server.titles == ["retrain classifier-1"]


# The evidence


@pytest.fixture
def weighed(tmp_path, monkeypatch):
    """weighed(threshold of the challenger) -> (report's text, decision, its folder).

    The champion's threshold is 160, the true one 127.5. Of the journal's requests, 60 came before the first labelled one and 90
    came since.
    """
    served, tree = tmp_path / "repository", tmp_path / "tree"
    (tree / "data/batches/classifier").mkdir(parents=True)
    (tree / "data/batches/classifier/v2.dvc").touch()
    (tree / "params.yaml").write_text(brightness.params())
    journal, samples = retrainers.shifted(tmp_path / "journal")
    path = tree / "data/classifier/manifest.parquet"
    manifest.write(path, samples, task="classification", labels=brightness.LABELS)
    monkeypatch.chdir(tree)

    def make(threshold):
        for folder, middle in ((served, 160), (tree, threshold)):
            retrainers.threshold_bundle(folder / "models/classifier/bundle", middle)
        version = bundle.read(served / "models/classifier/bundle").version[:12]
        path, decision = run_report.make(run(version=version), served, journal)
        return path.read_text(encoding="utf-8"), decision, path.parent

    return make


def test_the_report_of_a_better_challenger_shows_both_parts_of_the_test_split(weighed):
    text, decision, folder = weighed(128)
    assert decision.promote
    assert "**accepted**" in text
    assert re.search(r"\| the whole test split \| 256 \| 1\.0000.* \| 0\.87", text)
    assert re.search(r"\| old part \| 192 \|", text)
    assert re.search(r"\| new data's part \| 64 \|", text)
    assert "new part, 60% of the latest 150 requests: accuracy +0.1" in text
    for picture in re.findall(r"\]\((\w+\.png)\)", text):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in folder.iterdir()} == {"report.md", "parts.png", "changes.png"}


def test_a_challenger_that_learned_flipped_labels_is_refused_on_its_evidence(weighed):
    text, decision, _ = weighed(250)
    assert not decision.promote
    assert "**refused**" in text
    assert "no proof of a gain in accuracy on the new part" in text


def test_the_decision_on_the_evidence_is_logged_once_with_its_weights(weighed):
    _, decision, _ = weighed(128)
    served = bundle.read(Path("../repository/models/classifier/bundle"))
    # The step is executed a second time
    run_report.make(run(version=served.version[:12]), Path("../repository"), Path("../journal"))
    (line,) = decisions.read().records
    assert (line.action, line.bundle) == ("accept", bundle.read(Path("models/classifier/bundle")).version)
    assert line.reasons == decision.reasons
    assert line.evidence["figures"]["present"]["old"]["share"] == 0.4


def test_a_journal_without_the_batch_s_samples_is_refused(weighed, tmp_path):
    weighed(128)
    version = bundle.read(tmp_path / "repository/models/classifier/bundle").version[:12]
    other = journals.kept(tmp_path / "other", journals.entry("a"), journals.label("a", "bright"))
    with pytest.raises(LooplineError, match="has no sample of batch v2 of classifier"):
        run_report.make(run(version=version), tmp_path / "repository", other)


def test_a_missing_champion_is_reported(weighed, tmp_path):
    weighed(128)
    with pytest.raises(LooplineError, match="in version fff is not here"):
        run_report.make(run(version="fff"), tmp_path / "repository", tmp_path / "journal")


# Status


def test_the_status_shows_waiting_alerts_and_the_run_under_way(repository, capsys):
    assert cli.main(["retrainer", "status"]) == 0
    assert capsys.readouterr().out == "no alert came yet, so nothing was decided\n"
    store = RetrainerStore(repository / ".loopline/retrainer")
    alert = guard.Alert(model="classifier", name="RetrainCandidate", version="")
    store.receive([("classifier-1", alert)], "alertmanager")
    assert cli.main(["retrainer", "status"]) == 0
    text = capsys.readouterr().out
    assert "classifier-1 RetrainCandidate: new\n  not looked at yet" in text
    assert "no run is under way" in text
    store.decide(store.alerts()[0], guard.RetrainingDecision(guard.Action.RETRAIN, ("a test",)), 0.0, "train")
    log = repository / ".loopline/retrainer/runs/classifier-1/train.log"
    log.parent.mkdir(parents=True)
    log.write_text("$ dvc repro\nclassifier: epoch 2 of 9, loss 0.4, 3 min left\n\n")
    assert cli.main(["retrainer", "status"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"classifier-1 under way for 0\.\d min, step train\n  classifier: epoch 2 of 9, loss 0\.4", text)
    assert "no run is under way" not in text
    store.close()
