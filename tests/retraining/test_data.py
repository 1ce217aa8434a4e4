"""A run works in a worktree below `.loopline`, and must find the same data set as the repository."""

import gzip
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from retrainers import git

from loopline import settings
from loopline.retraining import worktree

ROOT = Path(__file__).parents[2]
SIDE, EACH = 8, 30  # pixels; images of a class


def pixels(label, number):
    return bytes((label * 100 + number + position) % 256 for position in range(SIDE * SIDE))


def photos(folder, numbers):
    for label in (0, 1):
        (folder / f"class{label}").mkdir(parents=True)
        for number in numbers:
            Image.frombytes("L", (SIDE, SIDE), pixels(label, number)).save(folder / f"class{label}/{number}.png")
    return folder


def catalogue(home, mirror):
    """Write a catalogue with one data set, `clothes`, whose files only the mirror has."""
    count = 2 * EACH
    labels = bytes(number % 2 for number in range(count))
    images = b"".join(pixels(label, number) for number, label in enumerate(labels))
    files = {
        "train-images-idx3-ubyte.gz": gzip.compress(struct.pack(">HBBIII", 0, 8, 3, count, SIDE, SIDE) + images),
        "train-labels-idx1-ubyte.gz": gzip.compress(struct.pack(">HBBI", 0, 8, 1, count) + labels),
    }
    (mirror / "clothes").mkdir(parents=True)
    for name, content in files.items():
        (mirror / "clothes" / name).write_bytes(content)
    about = {"description": "-", "licence": "MIT", "citation": "-", "samples": count, "task": "classification"}
    listed = [{"path": n, "bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()]
    names = {"0": "class0", "1": "class1"}
    entry = about | {"format": "IDX", "files": listed, "labels": names}
    (home / "data").mkdir(exist_ok=True)
    (home / "data/catalog.yaml").write_text(yaml.safe_dump({"clothes": entry}), encoding="utf-8")


def loopline(*arguments, at, **environment):
    command = [sys.executable, "-m", "loopline.cli", *arguments]
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{role}_NAME": "t", f"GIT_{role}_EMAIL": "t@localhost"}
    done = subprocess.run(command, cwd=at, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """repository(dataset) -> the root of a git and DVC repository whose classifier is trained on this data set."""
    home = tmp_path / "repository"

    def make(dataset):
        monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
        monkeypatch.delenv("LOOPLINE_MIRROR", raising=False)
        (home / ".dvc").mkdir(parents=True)
        for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, home / name)
        with (home / ".gitignore").open("a") as ignored:
            ignored.write("/photos-inside/\n")
        catalogue(home, tmp_path / "mirror")
        params = yaml.safe_load((ROOT / "tests/params.yaml").read_text(encoding="utf-8"))
        params["models"] = {"classifier": params["models"]["classifier"] | {"dataset": dataset}}
        (home / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        (home / "data/batches/classifier").mkdir(parents=True)
        (home / "data/batches/classifier/.gitkeep").touch()
        git(tmp_path, "init", "--quiet", "-b", "main", str(home))
        git(home, "add", "--all")
        git(home, "commit", "--quiet", "-m", "start")
        monkeypatch.chdir(home)
        return home

    return make


def sample_counts(folder):
    return json.loads((folder / "data/classifier/ingest.json").read_text(encoding="utf-8"))["sources"]


@pytest.mark.parametrize("kind", ["relative", "absolute", "inside", "catalogue"])
def test_a_run_adds_its_batch_to_the_data_set_that_the_repository_finds(repository, tmp_path, kind):
    dataset = {
        "relative": "../my-photos",
        "absolute": str(tmp_path / "my-photos"),
        "inside": "photos-inside",
        "catalogue": "clothes",
    }[kind]
    home = repository(dataset)
    photos(tmp_path / "my-photos", range(EACH))
    photos(home / "photos-inside", range(EACH))
    loopline("stage", "ingest", "classifier", at=home, LOOPLINE_MIRROR=str(tmp_path / "mirror"))
    own = sample_counts(home)

    folder = worktree.make(home, "run-1", "classifier", "scratch")
    photos(folder / ".loopline/batch", range(EACH, EACH + 5))
    # There is no mirror here, since nothing needs to be fetched again.
    loopline("data", "add", "classifier", ".loopline/batch", at=folder)
    loopline("stage", "ingest", "classifier", at=folder)
    assert sample_counts(folder) == own | {"v2": 10}
    assert not (folder / ".loopline/datasets").exists()
    assert git(folder, "diff", "main", "--stat", "--", "params.yaml") == ""


def test_the_drill_s_clone_and_a_run_of_its_own_find_the_data_set_too(repository, tmp_path):
    home = repository("../my-photos")
    photos(tmp_path / "my-photos", range(EACH))
    clone = home / ".loopline/drill/repository"
    git(home, "clone", "--quiet", "--shared", str(home), str(clone))
    loopline("stage", "ingest", "classifier", at=clone)
    folder = worktree.make(clone, "run-1", "classifier", "scratch")
    loopline("stage", "ingest", "classifier", at=folder)
    assert sample_counts(folder) == sample_counts(clone) == {"my-photos": 2 * EACH}


def test_the_working_copy_s_own_folder_comes_before_the_repository_s(tmp_path, monkeypatch):
    copy = tmp_path / "a/.dvc/tmp/exps/standalone/tmp1"
    for folder in (tmp_path / "a/photos", copy / "photos", copy.parent / "outside", tmp_path / "outside"):
        folder.mkdir(parents=True)
    (tmp_path / "a/params.yaml").touch()
    monkeypatch.chdir(copy)
    assert settings.repository() == tmp_path / "a"
    assert settings.located("photos").resolve() == copy / "photos"
    assert settings.located("../outside").resolve() == tmp_path / "outside", "not the folder outside/ beside the copy"
    assert settings.located("yolo11n.yaml") == Path("yolo11n.yaml"), "a name, not a path"


def test_a_project_below_a_hidden_folder_is_its_own_repository(tmp_path, monkeypatch):
    home = tmp_path / ".loopline/work"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    assert settings.repository() == home
