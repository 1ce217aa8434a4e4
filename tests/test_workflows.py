"""The workflows keep their rules, their validators refuse what is bad, and the scripts that jobs call do what they say."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
ACTIONS = sorted((ROOT / ".github/actions").glob("*/action.yml"))
BIN = Path(sys.executable).parent


def read(path):
    return yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)


def jobs(path):
    return read(path)["jobs"]


def steps(path):
    document = read(path)
    if "runs" in document:
        return document["runs"]["steps"]
    return [step for job in document["jobs"].values() for step in job["steps"]]


def name(path):
    return path.parent.name if path.name == "action.yml" else path.name


everywhere = pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS], ids=name)
workflows = pytest.mark.parametrize("path", WORKFLOWS, ids=name)


def test_there_are_the_workflows_that_the_documentation_describes():
    text = (ROOT / "docs/workflows.md").read_text(encoding="utf-8")
    assert {path.stem for path in WORKFLOWS} == set(re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE))


@everywhere
def test_actions_are_pinned_by_a_commit_with_its_version_or_are_of_this_repository(path):
    for used in re.findall(r"uses: (.+)", path.read_text(encoding="utf-8")):
        if used.startswith("$/"):
            assert (ROOT / used[2:] / "action.yml").is_file(), used
        else:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used


def test_an_action_has_one_pin_everywhere():
    pins = {}
    for path in [*WORKFLOWS, *ACTIONS]:
        for action, pin in re.findall(r"uses: ([\w./-]+)@(.+)", path.read_text(encoding="utf-8")):
            assert pins.setdefault(action, pin) == pin, f"{path}: {action}"


@everywhere
def test_no_expression_stands_in_a_script(path):
    for step in steps(path):
        assert "${{" not in step.get("run", ""), f"{step}: hand it over in env"


@workflows
def test_a_job_says_its_rights_its_time_and_who_waits_for_whom(path):
    document = read(path)
    assert document["permissions"] == {}, "a workflow has no rights of its own"
    assert document["concurrency"]["group"]
    for key, job in jobs(path).items():
        assert job["permissions"], key
        assert int(job["timeout-minutes"]) <= 360, key
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] == "false", key


@workflows
def test_what_may_change_the_repository_runs_nothing_of_the_pipeline(path):
    for key, job in jobs(path).items():
        if {"contents", "pull-requests"} & {right for right, level in job["permissions"].items() if level == "write"}:
            used = {step["uses"].split("@")[0] for step in job["steps"] if "uses" in step}
            assert used <= {"actions/checkout", "actions/download-artifact", "$/.github/actions/propose"}, key
            assert not re.search(
                r"\b(make|loopline|dvc|python|scripts)\b", " ".join(step.get("run", "") for step in job["steps"])
            ), key


def test_what_publishes_takes_nothing_from_a_cache():
    for path in [ROOT / ".github/workflows/deploy.yml", ROOT / ".github/actions/roll-out/action.yml"]:
        used = [step for step in steps(path) if step.get("uses") == "$/.github/actions/setup"]
        assert [step["with"]["cache"] for step in used] == ["false"]


def test_targets_and_scripts_that_are_called_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    called = set()
    scripts = [step.get("run", "") for path in [*WORKFLOWS, *ACTIONS] for step in steps(path)]
    editor = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    scripts += [command for key, command in editor.items() if key.endswith("Command")]
    for script in scripts:
        called |= set(re.findall(r"\bmake ([a-z-]+)", script))
        for file in re.findall(r"\bscripts/[a-z_.-]+", script):
            assert os.access(ROOT / file, os.X_OK), file
    assert called <= targets


def test_retrain_has_the_inputs_that_the_retrainer_sends_and_hands_them_over_in_the_environment():
    path = ROOT / ".github/workflows/retrain.yml"
    document = read(path)
    inputs = document["on"]["workflow_dispatch"]["inputs"]
    assert set(inputs) == {"model", "run"}
    assert all(one["required"] == "true" and one["type"] == "string" for one in inputs.values())
    assert list(document["on"]) == ["workflow_dispatch"]
    environment = document["jobs"]["retrain"]["env"]
    assert (environment["MODEL"], environment["RUN"]) == ("${{ inputs.model }}", "${{ inputs.run }}")


def roll_out(folder, fails="", judge="true"):
    """What the roll-out action's last step calls, with a make that fails at the one named; and its exit code."""
    (folder / "make").write_text(
        f'#!/bin/bash\necho "$*" >>"{folder}/called"\n[[ "$1" != "{fails}" ]]\n', encoding="utf-8"
    )
    (folder / "make").chmod(0o755)
    step = steps(ROOT / ".github/actions/roll-out/action.yml")[-1]
    assert step["env"]["WAIT"] == "${{ inputs.judge == 'true' && '--wait' || '' }}"
    given = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "KUBECONFIG": str(folder / "kubeconfig"),
        "CREDENTIALS": "secret",
    }
    given["WAIT"] = "--wait" if judge == "true" else ""
    done = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", step["run"]], env=given)
    assert not (folder / "kubeconfig").exists(), "no credentials stay"
    return done.returncode, (folder / "called").read_text(encoding="utf-8").splitlines()


def test_an_image_is_judged_verified_promoted_and_verified(tmp_path):
    assert roll_out(tmp_path) == (0, ["canary ARGS=--wait", "verify", "deploy", "verify"])


@pytest.mark.parametrize(("fails", "before"), [("canary", 1), ("verify", 2), ("deploy", 3)])
def test_what_fails_on_its_way_into_an_environment_is_rolled_back(tmp_path, fails, before):
    code, called = roll_out(tmp_path, fails, judge="false")
    assert code == 1
    assert called == [*["canary ARGS=", "verify", "deploy"][:before], "rollback"]


# The validators


@pytest.fixture
def copy(tmp_path):
    """A repository with the files that `make lint-delivery` looks at, and this environment."""
    for part in ("Makefile", "CITATION.cff", ".github", ".ci", "scripts", "serving"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copyfile)(ROOT / part, tmp_path / part)
    (tmp_path / ".venv").symlink_to(BIN.parent)
    for needed in ("requirements.lock", "pyproject.toml"):  # older than .venv/ready: nothing is installed
        (tmp_path / needed).touch()
        os.utime(tmp_path / needed, (0, 0))
    (tmp_path / ".gitignore").write_text(".venv\n")
    git(tmp_path, "init", "--quiet")
    return tmp_path


def git(folder, *words):
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "protocol.file.allow=always"]
    return subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def lint(folder, *options):
    return subprocess.run(["make", *options, "lint-delivery"], cwd=folder, capture_output=True, text=True)


def test_the_validators_pass_what_is_here(copy):
    done = lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_first_that_fails_ends_it(copy):
    (copy / "serving/Dockerfile").write_text("FROM debian", encoding="utf-8")
    assert lint(copy).returncode != 0


CHECKOUT = re.findall(r"actions/checkout@\w{40}", (ROOT / ".github/workflows/deploy.yml").read_text(encoding="utf-8"))[
    0
]
BREAKS = {
    "a validator each": [
        ("serving/Dockerfile", "FROM scratch AS image", "FROM debian AS image", "DL3006"),
        (".ci/run", "set -euo pipefail", "rm -r $1", "SC2086"),
        (".github/workflows/ci.yml", "timeout-minutes: 15", "timeout-minutes: soon", "ci.yml::$.jobs.lint"),
        (".github/actions/setup/action.yml", "using: composite", "using: magic", "action.yml::$.runs"),
        (".github/dependabot.yml", "version: 2", "version: 3", "dependabot.yml::$.version"),
        ("CITATION.cff", "type: software", "type: poem", "CITATION.cff::$.type"),
        ("serving/compose.yaml", "services:", "servants:", "compose.yaml::$"),
    ],
    "zizmor": [
        (
            ".github/workflows/ci.yml",
            "make lint",
            'echo "${{ github.event.pull_request.title }}"',
            "[template-injection]",
        ),
        (".github/workflows/ci.yml", "persist-credentials: false", "fetch-tags: true", "[artipacked]"),
        (".github/workflows/ci.yml", "permissions: {}", "permissions: write-all", "[excessive-permissions]"),
        (".github/workflows/ci.yml", "  pull_request:", "  pull_request_target:", "[dangerous-triggers]"),
        (
            ".github/workflows/drill.yml",
            "contents: read # the checkout",
            "contents: write",
            "[undocumented-permissions]",
        ),
        (".github/dependabot.yml", "default-days: 7", "default-days: 1", "[dependabot-cooldown]"),
        (".github/workflows/deploy.yml", CHECKOUT, "actions/checkout@v6", "[unpinned-uses]"),
    ],
}


@pytest.mark.parametrize("group", BREAKS)
def test_a_validator_refuses(copy, group):
    """Several at a time, for one run takes seconds: make is told to go on after each that fails, and says how many did."""
    for file, good, bad, _ in BREAKS[group]:
        path = copy / file
        text = path.read_text(encoding="utf-8")
        assert good in text
        path.write_text(text.replace(good, bad, 1), encoding="utf-8")
    done = lint(copy, "--ignore-errors")
    for file, _, _, said in BREAKS[group]:
        assert said in done.stdout + done.stderr, file
    # Of the first group zizmor can read nothing, so that every command of the recipe fails.
    assert done.stderr.count("(ignored)") == (len(BREAKS[group]) + 1 if group == "a validator each" else 1)


# What the jobs call


def call(script, *words, cwd, **environment):
    path = f"{BIN}:{os.environ['PATH']}"
    given = os.environ | {"PATH": path} | environment
    return subprocess.run([ROOT / "scripts" / script, *words], cwd=cwd, env=given, capture_output=True, text=True)


@pytest.fixture
def project(tmp_path):
    """A repository with DVC, whose main says accuracy .9 at 3 epochs; a branch is checked out that says .95 at 5."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    subprocess.run([BIN / "dvc", "init", "--quiet"], cwd=folder, check=True)
    (folder / "dvc.yaml").write_text("metrics: [metrics.json]\nparams: [params.yaml]\n")
    (folder / ".gitignore").write_text("/reports/\n")
    write(folder, 0.9, 3)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    git(folder, "switch", "--quiet", "--create", "branch")
    write(folder, 0.95, 5)
    git(folder, "commit", "--quiet", "--all", "--message", "second")
    return folder


def write(folder, accuracy, epochs):
    (folder / "metrics.json").write_text(json.dumps({"accuracy": accuracy}))
    (folder / "params.yaml").write_text(f"epochs: {epochs}\n")


def test_the_difference_has_metrics_and_parameters_of_two_commits(project):
    done = call("difference", cwd=project, BASE="main")
    assert done.returncode == 0, done.stderr
    said = (project / "reports/difference.md").read_text(encoding="utf-8")
    assert said == done.stdout
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in said.splitlines() if row.startswith("|")]
    assert ["metrics.json", "accuracy", "0.9", "0.95", "0.05"] in rows
    assert ["params.yaml", "epochs", "3", "5"] in rows


def test_no_difference_is_said(project):
    done = call("difference", cwd=project, BASE="branch")
    assert "No metric changed." in done.stdout
    assert "No parameter changed." in done.stdout


def test_a_base_that_is_not_there_is_an_error(project):
    done = call("difference", cwd=project, BASE="origin/main")
    assert done.returncode == 1
    assert "origin/main is no revision here" in done.stderr
    assert not (project / "reports/difference.md").exists()


def test_data_goes_to_the_remote_that_the_environment_names_and_comes_back(project, tmp_path):
    remote, data = {"LOOPLINE_DVC_REMOTE": str(tmp_path / "shared")}, project / "data.csv"
    data.write_text("a,b")
    subprocess.run([BIN / "dvc", "add", "--quiet", data], cwd=project, check=True)
    assert call("dvc-remote", "push", cwd=project, **remote).returncode == 0
    data.unlink()
    shutil.rmtree(project / ".dvc/cache")
    done = call("dvc-remote", "pull", cwd=project, **remote)
    assert (done.returncode, data.read_text()) == (0, "a,b"), done.stderr


@pytest.mark.parametrize("words", [(), ("gc",), ("push --all-commits",)])
def test_the_remote_is_only_pushed_to_or_pulled_from(tmp_path, words):
    done = call("dvc-remote", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "usage: dvc-remote push|pull\n")


@pytest.fixture
def remote(project, tmp_path):
    """(remote, a clone that trains, a clone that pushes), both at its main."""
    git(project, "switch", "--quiet", "main")
    git(tmp_path, "clone", "--quiet", "--bare", str(project), "remote.git")
    for clone in ("trains", "pushes"):
        git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{tmp_path}/remote.git", clone)
    return tmp_path / "remote.git", tmp_path / "trains", tmp_path / "pushes"


def test_commits_pass_from_the_job_that_trains_to_the_one_that_may_push(remote, tmp_path):
    bare, trains, pushes = remote
    base = git(trains, "rev-parse", "HEAD")
    for accuracy in (0.97, 0.98):  # a later run takes the place of what the earlier one proposed
        write(trains, accuracy, 7)
        (trains / "new.txt").write_text("new")
        bundle = str(tmp_path / "commits.bundle")
        assert call("propose", "pack", bundle, "Results", cwd=trains, GITHUB_SHA=base).returncode == 0
        done = call("propose", "push", bundle, "train/results", cwd=pushes)
        assert done.returncode == 0, done.stderr
        assert json.loads(git(bare, "show", "train/results:metrics.json")) == {"accuracy": accuracy}
        assert git(bare, "show", "train/results:new.txt") == "new"
        assert git(bare, "rev-parse", "main") == base
        git(trains, "reset", "--quiet", "--hard", base)


def test_where_nothing_changed_nothing_is_packed(remote, tmp_path):
    bundle = tmp_path / "commits.bundle"
    base = git(remote[1], "rev-parse", "HEAD")
    assert call("propose", "pack", str(bundle), "Results", cwd=remote[1], GITHUB_SHA=base).returncode == 0
    assert bundle.stat().st_size == 0


@pytest.mark.parametrize("branch", ["main", "train/../main", "release/1", "retrain/a b", "retrain/", "--force"])
def test_only_branches_of_proposals_are_pushed(remote, tmp_path, branch):
    bare, trains, pushes = remote
    write(trains, 0.1, 1)
    bundle = str(tmp_path / "commits.bundle")
    base = git(trains, "rev-parse", "HEAD")
    call("propose", "pack", bundle, "Results", cwd=trains, GITHUB_SHA=base)
    assert call("propose", "push", bundle, branch, cwd=pushes).returncode == 1
    assert git(bare, "rev-parse", "main") == base
    assert set(git(bare, "branch", "--format=%(refname:short)").split()) == {"main", "branch"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"MODEL": "text; touch owned", "RUN": "a"}, "MODEL is no model's name"),
        ({"MODEL": "--help", "RUN": "a"}, "MODEL is no model's name"),
        ({"MODEL": "a_b", "RUN": "a"}, "MODEL is no model's name"),
        ({"MODEL": "text", "RUN": "$(touch owned)"}, "RUN is no run's id"),
        ({"MODEL": "text", "RUN": "../../owned"}, "RUN is no run's id"),
        ({"MODEL": "text", "RUN": ""}, "RUN is no run's id"),
    ],
)
def test_a_retraining_takes_names_and_ids_alone(tmp_path, given, said):
    done = call("retrain", cwd=tmp_path, **given)
    assert done.returncode == 1
    assert said in done.stderr
    assert not any(tmp_path.iterdir())


def program(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(("journal", "passed"), [("", ".loopline/journal"), ("s3://a/b", "s3://a/b")])
def test_a_retraining_is_a_run_of_the_retrainer_and_keeps_its_exit_code(tmp_path, journal, passed):
    program(tmp_path / ".venv/bin/loopline", 'echo "$@"; exit 2')
    done = call("retrain", cwd=tmp_path, MODEL="text", RUN="text-1", JOURNAL=journal)
    assert (done.returncode, done.stdout) == (2, f"retrainer run text text-1 --journal {passed}\n")


def test_the_pull_request_has_the_run_s_report_without_its_pictures(tmp_path):
    for name in ("difference", "propose"):
        program(tmp_path / "scripts" / name, ":")
    (tmp_path / "reports/retraining/text-1").mkdir(parents=True)
    (tmp_path / "reports/retraining/text-1/report.md").write_text("# Retraining\n![parts](parts.png)\n+0.1\n")
    (tmp_path / "reports/difference.md").write_text("### Metrics\n")
    (script,) = (
        run for step in steps(ROOT / ".github/workflows/retrain.yml") if "pack" in (run := step.get("run", ""))
    )
    given = os.environ | {"RUN": "text-1", "MODEL": "text", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    subprocess.run(["bash", "-e", "-o", "pipefail", "-c", script], cwd=tmp_path, env=given, check=True)
    for file in ("summary", "reports/evidence.md"):
        assert (tmp_path / file).read_text() == "# Retraining\n+0.1\n\n### Metrics\n"
