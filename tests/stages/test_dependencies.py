"""dvc.yaml names everything that a stage depends on: the modules it imports, the files it opens, the settings it reads."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import imports
import pytest
import yaml
from dvc.repo import Repo
from opened import Opened
from test_ingest import write_images

from loopline.cli.pipeline import STAGES
from loopline.stages import package

ROOT = Path(__file__).parents[2]
# Every module imports it, and no result depends on it: the package's version, and switches of telemetry and CUDA.
EXEMPT = {"src/loopline/__init__.py"}
# Imported to check the other models in params.yaml.
PARAMETERS = {f"src/loopline/tasks/{task}/parameters.py" for task in ("classification", "detection", "text")}
# Named although it is not opened, so that no model is trained on data that failed.
GATES = {("train", "data/NAME/validation.json")}
# Opened only for a text model, whose tokenizer is there.
TOKENIZER = {(stage, "models/NAME/train") for stage in ("quantize", "evaluate", "calibrate")}
# Read only for MLflow's run and for the text of an error.
BESIDES = {("train", "models.NAME.dataset"), ("evaluate", "models.NAME.dataset")}
# A task's modules are named for every model, even in a project that was created without that task.
TASKS = {"classification", "detection", "text"}
MODELS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["models"]
PLAYED = {"text", "classification"} & {model["task"] for model in MODELS.values()}  # those tasks that this project has
SCRATCH = ("params.yaml", ".loopline/", "mlflow.db", "mlruns/", "reports/")


@pytest.fixture(scope="module")
def pipeline():
    """Map (stage, model) to DVC's stage, as DVC itself reads dvc.yaml."""
    stages = {}
    for stage in Repo(ROOT).index.stages:
        if "@" in (stage.name or ""):
            stages[tuple(stage.name.split("@"))] = stage
    return stages


def dependencies(stage):
    return {dep.def_path for dep in stage.deps if "params" not in type(dep).__name__.lower()}


def parameters(stage):
    return {name for dep in stage.deps for name in getattr(dep, "params", ())}


def holds(folder, path):
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def files(stage, task):
    """Return the code files that a stage needs, relative to the repository's root."""
    needed = imports.needed(f"loopline.stages.{stage}", task)
    return {imports.FILES[name].relative_to(ROOT).as_posix() for name in needed} - EXEMPT


def unnamed(needed, named):
    return sorted(path for path in needed if not any(holds(folder, path) for folder in named))


def task_of(model):
    return MODELS[model]["task"]


# Code


def test_every_module_that_a_stage_needs_is_named(pipeline):
    missing = {}
    for (stage, model), declared in pipeline.items():
        if stage in STAGES and (paths := unnamed(files(stage, task_of(model)), dependencies(declared))):
            missing[f"{stage}@{model}"] = paths
    assert not missing


@pytest.mark.parametrize("stage", STAGES)
def test_the_check_above_fails_without_any_single_module(pipeline, stage):
    models = [model for name, model in pipeline if name == stage]
    code = {path for path in dependencies(pipeline[stage, models[0]]) if path.startswith("src/")}
    for path in sorted(code):
        if Path(path).suffix in (".css", ".html") or stage == "package":  # it names the code of every stage: see below
            continue
        if path.startswith("src/loopline/tasks/") and not set(map(task_of, models)) >= TASKS:
            continue
        red = []
        for model in models:
            needed, named = files(stage, task_of(model)), dependencies(pipeline[stage, model])
            own = path.replace(task_of(models[0]), task_of(model))
            red += [bool(unnamed(needed, named - {path})), bool(unnamed(needed, named - {own}))]
        assert any(red), f"{stage} names {path}, and no model needs it"


def test_the_lineage_and_the_stage_package_name_the_code_of_every_stage(pipeline):
    models = {model for _, model in pipeline}
    needed = {path for stage in STAGES for model in models for path in files(stage, task_of(model))}
    rooms = {f"src/loopline/{room}" for room in package.CODE}
    assert unnamed(needed, rooms) == []
    for room in rooms:
        assert unnamed(needed, rooms - {room}), f"{room} is in the lineage, and no stage needs it"
    for model in models:
        assert unnamed(rooms, dependencies(pipeline["package", model])) == []


# Files and settings

RECORD = """
import json, sys
from importlib import import_module
from loopline import settings

paths, looked = {}, set()

def spy(self, name):
    value = object.__getattribute__(self, name)
    if name in type(self).__pydantic_fields__:
        where = "" if type(self) is settings.Settings else paths.get(id(self))
        if where is not None:
            here = f"{where}.{name}".lstrip(".")
            parts = value.items() if name == "models" else [("", value)]
            for key, part in parts:
                if isinstance(part, settings.Strict):
                    paths[id(part)] = f"{here}.{key}".rstrip(".")
                else:
                    looked.add(here)
    return value

settings.Strict.__getattribute__ = spy
stage, model, out = sys.argv[1:]
import_module(f"loopline.stages.{stage}").main(model)
modules = sorted(name for name in sys.modules if name.split(".")[0] == "loopline")
open(out, "w").write(json.dumps({"looked": sorted(looked), "modules": modules}))
"""
WORDS = {"fruit": "apple pear plum cherry grape lemon", "tools": "hammer saw drill chisel plane file"}


def small(folder, task):
    """Fill an empty folder with what the stages read, and with a model `it` that trains in a moment."""
    content = yaml.safe_load((ROOT / "tests/params.yaml").read_text(encoding="utf-8"))
    model = next(dict(model) for model in content["models"].values() if model["task"] == task)
    model |= {"dataset": "dataset", "split": {"seed": 0, "val": 0.3, "test": 0.3}}
    model["expectations"] |= {"min_samples": 1, "min_per_class": 1}
    model["train"] |= {"epochs": 1}
    model["evaluate"] = {"floors": {}, "must_beat_simple": False, "resamples": 100}
    model["calibrate"] |= {"streams": 100}
    (folder / "params.yaml").write_text(yaml.safe_dump(content | {"models": {"it": model}}), encoding="utf-8")
    shutil.copytree(ROOT / "data/catalog", folder / "data/catalog")
    shutil.copy(ROOT / "data/catalog.yaml", folder / "data")
    batch = folder / "data/batches/it/v2"
    for place, first, count in ((folder / "dataset", 0, 120), (batch, 120, 10)):
        place.mkdir(parents=True)
        if task == "text":
            rows = [
                (f"{word} {number} {word}s", label)
                for number in range(first, first + count)
                for label, words in WORDS.items()
                for word in [words.split()[number % 6]]
            ]
            with (place / "texts.csv").open("w", newline="") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
        else:
            for seed, label in enumerate(WORDS):
                write_images(place / label, first + seed, count)
    (batch.parent / "v2.dvc").write_text("outs: []\n")


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
@pytest.mark.parametrize("task", sorted(PLAYED))
def test_every_file_and_setting_that_a_stage_reads_is_named(pipeline, tmp_path, task):
    named = {stage: pipeline[stage, model] for stage, model in pipeline if task_of(model) == task}
    (model,) = {model for _, model in pipeline if task_of(model) == task}
    small(tmp_path, task)
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    wrong = {}
    for stage in STAGES:
        declared, out = named[stage], tmp_path.with_name(f"{stage}-{task}.json")
        with Opened(tmp_path) as seen:
            done = subprocess.run(
                [sys.executable, "-c", RECORD, stage, "it", out],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
            )
        assert done.returncode == 0, f"{stage}: {done.stderr}"
        record = json.loads(out.read_text(encoding="utf-8"))
        paths = {path.replace("/it/", f"/{model}/").removesuffix(".partial") for path in seen.paths}
        paths = {path for path in paths if not path.startswith((*SCRATCH, "dataset/"))}
        looked = {name.replace("models.it.", f"models.{model}.") for name in record["looked"]}
        code = {
            imports.FILES[name].relative_to(ROOT).as_posix() for name in record["modules"] if imports.has_code(name)
        }
        places = dependencies(declared) | {item.def_path for item in declared.outs}
        settings = {*parameters(declared), f"models.{model}.task"}  # the task decides which code the stage runs
        settings |= {name.replace("NAME", model) for of, name in BESIDES if of == stage}
        wrong |= {
            (stage, "opens"): unnamed(paths, places),
            (stage, "imports"): unnamed(code - EXEMPT - PARAMETERS, places),
            (stage, "looks at"): [
                name
                for name in sorted(looked)
                if not any(name == setting or name.startswith(f"{setting}.") for setting in settings)
            ],
            (stage, "does not open"): [
                path
                for path in sorted(dependencies(declared))
                if path.startswith(("data/", "models/"))
                and (stage, path.replace(f"/{model}/", "/NAME/"))
                not in (GATES if task == "text" else GATES | TOKENIZER)
                and not any(holds(path, named_path) for named_path in paths)
            ],
        }
    assert {key: value for key, value in wrong.items() if value} == {}


# A model that is new


@pytest.mark.parametrize("command", [["repro"], ["exp", "run"], ["exp", "run", "--temp"]], ids=" ".join)
def test_dvc_runs_a_model_that_has_no_folder_of_batches_yet(tmp_path, command):
    home = tmp_path / "home"
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "dvc.yaml", "data/catalog.yaml"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, home / name)
    shutil.copytree(ROOT / "data/catalog", home / "data/catalog")
    shutil.copytree(ROOT / "src", home / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    content = yaml.safe_load((ROOT / "tests/params.yaml").read_text(encoding="utf-8"))
    model = next(dict(model) for model in content["models"].values() if model["task"] == "text")
    content["models"] = {"fresh": model | {"dataset": "../reviews"}}
    (home / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    for label in ("good", "bad"):
        (tmp_path / "reviews" / label).mkdir(parents=True)
        for number in range(40):
            (tmp_path / "reviews" / label / f"{number}.txt").write_text(f"{label} film {number}")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
    for who in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{who}_NAME": "t", f"GIT_{who}_EMAIL": "t@localhost"}

    def run(*arguments):
        done = subprocess.run(arguments, cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("git", "init", "--quiet", "-b", "main")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message=start")
    output = run(sys.executable, "-m", "dvc", *command, "ingest@fresh")
    assert "Running stage 'ingest@fresh'" in output
    if "--temp" not in command:
        assert json.loads((home / "data/fresh/ingest.json").read_text(encoding="utf-8"))["sources"] == {"reviews": 80}
        assert "Data and pipelines are up to date" in run(sys.executable, "-m", "dvc", "repro", "ingest@fresh")
