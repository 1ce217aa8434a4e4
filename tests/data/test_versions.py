"""Dataset versions in a real repository: git and DVC as programs, an S3 server, and every reason for a refusal."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from loopline.data import manifest, versions
from loopline.data.repository import dvc, git
from loopline.errors import LooplineError
from loopline.stages import ingest

ROOT = Path(__file__).parents[2]
IMAGES = random.Random(0)


def images(folder: Path, **classes: int) -> Path:
    """A folder of noise: class -> number of images."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.frombytes("L", (12, 12), IMAGES.randbytes(144)).save(folder / name / f"{number}.png")
    return folder


def texts(folder: Path, rows: list[tuple[str, str]]) -> Path:
    """A folder with one CSV of (text, label)."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
    (folder / "texts.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def numbered(start: int, stop: int, label: str) -> list[tuple[str, str]]:
    return [(f"text number {number}", label) for number in range(start, stop)]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as a user has it after cloning and pointing two models at their own folders."""
    home = tmp_path_factory.mktemp("template")
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "data/catalog.yaml"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, home / name)
    shutil.copytree(ROOT / "data/catalog", home / "data/catalog")
    params = (ROOT / "tests/params.yaml").read_text(encoding="utf-8")
    params = params.replace("dataset: digits ", "dataset: shapes ").replace("dataset: languages", "dataset: reviews")
    (home / "params.yaml").write_text(params, encoding="utf-8")
    images(home / "shapes", circle=30, square=30)
    texts(home / "reviews", numbered(0, 40, "good") + numbered(40, 80, "bad"))
    return home


@pytest.fixture
def home(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    shutil.copytree(template, home)
    monkeypatch.chdir(home)
    for name, value in {
        "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "HOME": str(tmp_path),
        "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org",
        "DVC_SITE_CACHE_DIR": str(tmp_path / "site"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    git("init", "--quiet", "--initial-branch=main")
    git("add", ".")
    git("commit", "--quiet", "--message=A clone")
    return home


def state(home: Path) -> list[str]:
    """All that a refused or failed `data add` must not change."""
    files = [path for path in home.rglob("*") if path.is_file() and not path.is_relative_to(home / ".git")]
    kept = [path for path in files if path.relative_to(home).parts[0] not in (".loopline", "reports")]
    kept = [path for path in kept if not path.is_relative_to(home / ".dvc") or path.name in ("config", ".gitignore")]
    contents = [f"{path.relative_to(home)} {hash(path.read_bytes())}" for path in sorted(kept)]
    return [*contents, git("status", "--porcelain"), git("for-each-ref"), git("symbolic-ref", "HEAD")]


def ingested(model: str) -> tuple[int, dict[str, int]]:
    """The number of samples that ingest finds, in all and per class."""
    ingest.main(model)
    rows = manifest.table(Path("data") / model / "manifest.parquet", ["label"])["label"].to_pylist()
    shutil.rmtree(Path("data") / model)
    return len(rows), {label: rows.count(label) for label in sorted(set(rows))}


def test_a_batch_with_a_new_class_becomes_a_version_and_the_old_one_comes_back(home: Path, tmp_path: Path) -> None:
    incoming = images(tmp_path / "incoming", circle=5, star=20)
    shutil.copy("shapes/square/0.png", images(incoming, square=0) / "square/known.png")
    shutil.copytree(incoming / "star", incoming / "@eaDir/star")  # thumbnails of a network drive
    (incoming / ".gitignore").write_text("star\n")
    assert ingested("classifier") == (60, {"circle": 30, "square": 30})
    commits = git("rev-list", "--count", "HEAD")

    report = versions.add("classifier", incoming)

    assert sorted(path.name for path in Path("data/batches/classifier/v2").iterdir()) == ["circle", "square", "star"]
    assert "classifier v2: 25 new samples, new classes star" in report
    assert "1 x already in the dataset" in report
    assert "star         0  +20     20" in report
    assert Path("reports/classifier/classes-v2.png").read_bytes().startswith(b"\x89PNG")
    assert git("status", "--porcelain") == ""
    assert int(git("rev-list", "--count", "HEAD")) == int(commits) + 1
    assert git("show", "--name-only", "--format=", "HEAD").split() == [
        "data/batches/classifier/.gitignore", "data/batches/classifier/v2.dvc",
    ]  # fmt: skip
    assert git("tag").split() == ["data/classifier/v1", "data/classifier/v2"]
    new = (85, {"circle": 35, "square": 30, "star": 20})
    assert ingested("classifier") == new

    git("checkout", "--quiet", "data/classifier/v1")
    with pytest.raises(LooplineError, match=r"v2 is not part of this data version.*`dvc checkout`"):
        ingested("classifier")
    dvc("checkout", "--quiet")
    assert ingested("classifier") == (60, {"circle": 30, "square": 30})
    assert git("status", "--porcelain") == ""
    with pytest.raises(LooplineError, match="no branch is checked out"):
        versions.add("classifier", incoming)

    git("checkout", "--quiet", "data/classifier/v2")
    dvc("checkout", "--quiet")
    assert ingested("classifier") == new
    git("checkout", "--quiet", "main")
    assert versions.next_tag("classifier") == "data/classifier/v3"
    assert versions.next_tag("text") == "data/text/v2"


def test_a_failure_at_the_very_last_step_leaves_everything_as_it_was(home: Path, tmp_path: Path) -> None:
    # Git asks this hook before it moves any reference: it lets the commit and the tag v1 pass, but not the tag v2.
    hook = Path(".git/hooks/reference-transaction")
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(
        '#!/bin/sh\n[ "$1" != prepared ] || ! grep -q " [0-9a-f]*[1-9a-f][0-9a-f]* refs/tags/data/text/v2"\n'
    )
    hook.chmod(0o755)
    before = state(home)
    with pytest.raises(LooplineError, match=r"^`git tag` failed: .*hook"):
        versions.add("text", texts(tmp_path / "incoming", numbered(100, 120, "good")))
    assert state(home) == before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"it holds no samples|known for text"),
        (numbered(100, 110, ""), r"10 of 10 samples would be set aside.*\n  10 x "),
        (numbered(100, 110, "good") + numbered(200, 202, ""), r"2 of 12 samples would be set aside, but at most 10%"),
        (numbered(0, 20, "good"), r"already has all its 20 samples"),
        (
            numbered(38, 42, "good"),
            r"2 of its samples are .* another label.*\n  texts.csv:\d+ is good, but bad as texts",
        ),
        ([("lone text 0", "lonely")], r"Class 'lonely' has no training sample"),
    ],
)
def test_a_bad_batch_is_refused_with_the_reason(
    rows: list[tuple[str, str]], message: str, home: Path, tmp_path: Path
) -> None:
    before = state(home)
    with pytest.raises(LooplineError, match=message):
        versions.add("text", texts(tmp_path / "incoming", rows))
    assert state(home) == before


def test_a_batch_for_another_task_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(LooplineError, match="no known format for the task text"):
        versions.add("text", images(tmp_path / "incoming", circle=3, star=3))


def test_staged_changes_are_not_taken_along(home: Path, tmp_path: Path) -> None:
    Path("notes.txt").write_text("half a thought")
    git("add", "notes.txt")
    before = state(home)
    with pytest.raises(LooplineError, match=r"staged changes \(notes.txt\)"):
        versions.add("text", texts(tmp_path / "incoming", numbered(100, 120, "good")))
    assert state(home) == before


def test_files_left_by_an_interrupted_run_are_named(home: Path, tmp_path: Path) -> None:
    texts(home / "data/batches/text/v2", numbered(100, 120, "good"))
    with pytest.raises(LooplineError, match=r"data/batches/text has uncommitted changes \(.*v2/texts.csv"):
        versions.add("text", texts(tmp_path / "incoming", numbered(100, 120, "good")))


@pytest.mark.parametrize(
    ("model", "folder", "message"),
    [("txt", "incoming", "no model 'txt'"), ("text", "nowhere", "nowhere is not a folder"),
     ("text", "data/batches/text", "move it out first")],
)  # fmt: skip
def test_a_slip_on_the_command_line_is_explained(model: str, folder: str, message: str, home: Path) -> None:
    Path("data/batches/text").mkdir(parents=True)
    with pytest.raises(LooplineError, match=message):
        versions.add(model, folder)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real S3 endpoint on this machine, with the bucket `teamdata`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:  # while the server runs: a busy machine may need minutes
            try:
                urllib.request.urlopen(urllib.request.Request(f"{url}/teamdata", method="PUT"), timeout=60).close()
                break
            except OSError:
                assert server.poll() is None, "moto_server ended"
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


def test_a_batch_goes_to_its_own_s3_remote_and_comes_back(home: Path, tmp_path: Path, s3: str) -> None:
    incoming = texts(tmp_path / "incoming", numbered(100, 120, "good"))
    with pytest.raises(LooplineError, match="DVC has no remote 'team', only local"):
        versions.add("text", incoming, remote="team")
    with Path(".dvc/config").open("a") as config:
        config.write(f"['remote \"team\"']\n    url = s3://teamdata/text\n    endpointurl = {s3}\n")
    git("commit", "--quiet", "--all", "--message=A remote for the team")

    versions.add("text", incoming, remote="team")
    assert "remote: team" in Path("data/batches/text/v2.dvc").read_text()
    dvc("push", "--quiet")
    assert not Path(".loopline/dvc-remote").exists()  # nothing went to the default remote

    shutil.rmtree(".dvc/cache")
    shutil.rmtree("data/batches/text/v2")
    dvc("pull", "--quiet")
    assert ingested("text") == (100, {"bad": 40, "good": 60})
