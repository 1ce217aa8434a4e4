"""`make new`: a project of its own from what is committed here, in several variants, that holds by itself."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from loopline import settings

ROOT = Path(__file__).parents[1]
QUESTIONS = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))
LEFT_OUT = [
    re.fullmatch(r"(?:{% if '(\w+)' not in (\w+) %})?/([^{]+)(?:{% endif %})?", line) for line in QUESTIONS["_exclude"]
]
MODELS = {"classification": "classifier", "detection": "detector", "text": "text"}
VARIANTS = {
    "all": (("classification", "detection", "text"), ("compose", "kubernetes", "serverless")),
    "text": (("text",), ()),
    "images": (("classification",), ("kubernetes",)),
}
ENVIRONMENT = os.environ | {
    **{f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}


def run(*command, cwd, **environment):
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tracked(folder):
    return set(run("git", "ls-tree", "-r", "--name-only", "HEAD", cwd=folder).splitlines())


def bake(folder, tasks, targets):
    run(
        "make",
        "new",
        f"NAME={folder.name}",
        f"TO={folder}",
        f"TASKS={','.join(tasks)}",
        f"TARGETS={','.join(targets)}",
        cwd=ROOT,
    )
    return folder


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    """projects(variant) -> its folder, made once."""
    root = tmp_path_factory.mktemp("projects")
    return cache(lambda variant: bake(root / f"my-{variant}", *VARIANTS[variant]))


@pytest.fixture(params=VARIANTS)
def baked(request, projects):
    """A project of each variant, its tasks and targets."""
    return projects(request.param), *VARIANTS[request.param]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"NAME": "my churn"},
            "NAME='my churn' cannot be a project's name: lower-case letters, .*, e.g. NAME=my-churn",
        ),
        ({"NAME": "7"}, "NAME='7' cannot be a project's name: lower-case letters, digits and '-', a letter first"),
        ({"NAME": 'a"b$(c)'}, "NAME='a\"b.*' cannot be a project's name: .*, e.g. NAME=a-b-c"),
        ({}, "NAME is missing. usage: make new NAME=churn .*"),
        ({"NAME": "churn"}, "TASKS and TARGETS would be asked, and there is no terminal: .* ARGS=--defaults"),
        ({"NAME": "churn", "TASKS": "text"}, "TARGETS would be asked, and there is no terminal: .*"),
        ({"NAME": "churn", "TASKS": "texts"}, "TASKS: there is no texts, but classification, detection, text"),
        ({"NAME": "churn", "TASKS": ""}, "TASKS is empty: name at least one of .*"),
        ({"NAME": "churn", "TARGETS": "docker"}, "TARGETS: there is no docker, but compose, kubernetes, serverless"),
        ({"NAME": "churn", "TO": "."}, ". is there already: name another folder with TO=..."),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_made(given, message, tmp_path):
    given = {"TO": str(tmp_path / "made")} | given
    command = ["make", "--silent", "new", *(f"{name}={value}".replace("$", "$$") for name, value in given.items())]
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in ("NAME", "TASKS", "TARGETS", "TO")}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not re.match(r"make(\[\d+\])?: \*\*\*", line)]
    assert len(lines) == 1
    assert re.fullmatch(f"make new: {message}", lines[0]), lines
    assert not (tmp_path / "made").exists()


def test_every_path_that_may_be_left_out_exists_and_names_a_choice():
    for match in LEFT_OUT:
        assert match, "a line of _exclude that this test cannot read"
        choice, question, path = match.groups()
        assert (ROOT / path).exists(), f"copier.yml leaves out {path}, which is not there"
        assert question is None or choice in QUESTIONS[question]["default"]


NOT_LOCKED = {"torchvision"}  # see scripts/lock


def reached(requirements):
    """Names of the packages that these need, as installed here, and what those need."""
    seen, todo = set(), [(one, "") for one in requirements]
    while todo:
        requirement, wanted = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": wanted}):
            continue
        for extra in ("", *requirement.extras):
            if (key := (canonicalize_name(requirement.name), extra)) not in seen and key[0] not in NOT_LOCKED:
                seen.add(key)
                todo += [(Requirement(line), extra) for line in importlib.metadata.requires(key[0]) or ()]
    return {name for name, _ in seen}


def licence(name):
    """What a package says of its licence: the first lines, as some give whole texts that name many others."""
    said = importlib.metadata.metadata(name)
    fields = ("License", "License-Expression", "Classifier")
    return "\n".join(str(one).partition("\n")[0] for field in fields for one in said.get_all(field, ()))


def locked(folder):
    return {canonicalize_name(line.split("==")[0]) for line in (folder / "requirements.lock").read_text().split()}


def test_without_detection_the_lock_has_what_the_rest_needs_and_no_agpl(baked):
    folder, tasks, _ = baked
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == folder.name
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(one for name in extras.keys() - {"gpu", "predict", "ray"} for one in extras[name]),
    ]
    assert locked(folder) == reached(map(Requirement, wanted))
    assert locked(folder) <= locked(ROOT)
    agpl = {name for name in locked(folder) if re.search(r"AGPL|Affero", licence(name))}
    assert bool(agpl) == ("detection" in tasks), agpl
    imports = [
        path
        for path in (folder / "src").rglob("*.py")
        if re.search(r"^\s*(import|from) ultralytics", path.read_text(), re.M)
    ]
    assert bool(imports) == ("detection" in tasks), imports


def test_it_has_its_own_models_and_every_file_that_it_does_not_leave_out(baked):
    folder, tasks, targets = baked
    models = {MODELS[task] for task in tasks}
    assert set(settings.load(folder / "params.yaml").models) == models
    assert set(settings.load(folder / "tests/params.yaml").models) == set(MODELS.values()), "what the tests train on"
    answers = yaml.safe_load((folder / ".copier-answers.yml").read_text())
    assert (answers["tasks"], answers["targets"]) == (list(tasks), list(targets))
    out = tuple(match[3] for match in LEFT_OUT if match[1] is None or match[1] not in (*tasks, *targets))
    wanted = {path for path in tracked(ROOT) if not any(path == one or path.startswith(f"{one}/") for one in out)}
    assert tracked(folder) == wanted - {".copier-answers.yml.jinja"} | {".copier-answers.yml"}
    assert run("git", "status", "--porcelain", cwd=folder) == "", "all of it is committed"


def test_the_committed_results_are_still_those_of_its_code_and_data(baked):
    folder, tasks, _ = baked
    report = json.loads(run(sys.executable, "-m", "dvc", "status", "--json", cwd=folder))
    stages = {
        f"{stage}@{MODELS[task]}"
        for task in tasks
        for stage in yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    }
    assert {name.split("@")[1] for name in report} <= {MODELS[task] for task in tasks}
    old = {name.split(":")[0] for name in yaml.safe_load((folder / "dvc.lock").read_text())["stages"]}
    anew = set() if "detection" in tasks else {f"package@{MODELS[task]}" for task in tasks}
    assert old == stages - anew
    for name in old:
        changes = [change for one in report.get(name, ()) if isinstance(one, dict) for change in one.values()]
        assert not [one for one in changes if "modified" in one.values()], f"{name}: {changes}"
        assert "changed command" not in report.get(name, ())


def test_its_own_tests_of_documents_and_settings_pass(baked):
    folder, *_ = baked
    said = run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_docs.py", "tests/test_settings.py",
               cwd=folder, PYTHONPATH=str(folder / "src"))  # fmt: skip
    assert " passed" in said and "skipped" not in said


def test_an_edit_that_finds_nothing_to_edit_stops_the_bake(tmp_path):
    (tmp_path / ".copier-answers.yml").write_text("{project: x, tasks: [text], targets: []}")
    (tmp_path / "params.yaml").write_text("models:\n  words:\n    task: text\n")
    done = subprocess.run(
        [sys.executable, ROOT / "template/bake.py", "copy"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "nothing in params.yaml matches '^  classifier" in done.stderr


def test_one_without_ultralytics_trains_and_tests_itself(projects, tmp_path):
    """In this environment, but for Ultralytics and what came with it; with the results of this cache, where it has them."""
    folder = Path(shutil.copytree(projects("images"), tmp_path / "images", symlinks=True))
    for name in ("ultralytics", "cv2", "polars"):
        (tmp_path / "absent").mkdir(exist_ok=True)
        (tmp_path / "absent" / f"{name}.py").write_text(f"raise ImportError('this project has no {name}')\n")
    (folder / ".venv").symlink_to(ROOT / ".venv")
    # Newer than .venv/ready, they would make `make` install this project in it
    for name in ("requirements.lock", "pyproject.toml"):
        os.utime(folder / name, (0, 0))
    paths = {"PYTHONPATH": f"{folder / 'src'}:{tmp_path / 'absent'}"}
    run("dvc", "remote", "modify", "--local", "local", "url", str(ROOT / ".dvc/cache"), cwd=folder)
    subprocess.run(["dvc", "pull", "--quiet"], cwd=folder, env=ENVIRONMENT | paths, capture_output=True)
    run("make", "repro", cwd=folder, **paths)
    assert "up to date" in run("make", "repro", cwd=folder, **paths)
    assert {path.name for path in folder.glob("models/*/bundle/*")} >= {"model.onnx", "bundle.json", "SHA256SUMS"}
    said = run("make", "test", "ARGS=-n0 tests/stages tests/training/test_quality_report.py", cwd=folder, **paths)
    assert " passed" in said and "skipped" not in said


def test_an_update_brings_what_changed_here_and_keeps_what_is_the_projects_own(tmp_path):
    upstream, folder = tmp_path / "loopline", tmp_path / "words"
    run("git", "clone", "--quiet", "--no-local", str(ROOT), str(upstream), cwd=tmp_path)
    answers = ["--data", "project=words", "--data", "tasks=[text]", "--data", "targets=[]"]
    run("copier", "copy", "--quiet", "--trust", "--vcs-ref", "HEAD", *answers, str(upstream), str(folder), cwd=tmp_path)
    lines = {"README.md": "Ours.\n", "params.yaml": "# ours\n", "dvc.lock": "# ours\n"}
    for name, line in lines.items():
        (folder / name).write_text((folder / name).read_text() + line)
    (folder / "data/classifier").mkdir()
    # A model of the project's own, called like one that it left out
    (folder / "data/classifier/ingest.json").write_text("{}")
    run("git", "add", ".", cwd=folder)
    run("git", "commit", "--quiet", "-m", "ours", cwd=folder)
    owned = {
        path: (folder / path).read_bytes()
        for path in tracked(folder)
        if path.startswith(("data/classifier", "models", "README", "dvc.lock"))
    }

    for name in ("params.yaml", "docs/gates.md", "README.md"):
        (upstream / name).write_text("# theirs\n" + (upstream / name).read_text())
    (upstream / "models/text/metrics.json").write_text("{}")
    run("git", "commit", "--quiet", "--all", "-m", "theirs", cwd=upstream)
    run("copier", "update", "--quiet", "--trust", "--defaults", "--vcs-ref", "HEAD", cwd=folder)

    params = (folder / "params.yaml").read_text()
    assert params.startswith("# theirs\n") and params.endswith("# ours\n") and "<<<<" not in params
    assert set(settings.load(folder / "params.yaml").models) == {"text"}
    assert (folder / "docs/gates.md").read_text().startswith("# theirs\n")
    assert {path: (folder / path).read_bytes() for path in owned} == owned
    changed = {line[3:] for line in run("git", "status", "--porcelain", cwd=folder).splitlines()}
    assert changed == {".copier-answers.yml", "params.yaml", "tests/params.yaml", "docs/gates.md"}
