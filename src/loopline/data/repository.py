"""Adds a folder to DVC and git in one step: in the end files, commit and tags are all there, or none is.

Runs `git` and `dvc` as programs in the current folder, which is the repository's root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import yaml

from loopline.errors import LooplineError

INCOMING = Path(".loopline/incoming")
# New files that belong to the pipeline. Others, a data set in a folder of the repository for one, may be large or secret.
PIPELINE = ("models", "src", *(f":(glob)data/{name}" for name in ("*/*.json", "*/*.csv", "**/*.dvc", "**/.gitignore")))
IDENTITY = ("-c", "user.name=Loopline", "-c", "user.email=loopline@localhost")


def git(*arguments: str, **environment: str) -> str:
    """Run git with these variables set, and return what it prints. Raises LooplineError with git's own words."""
    return _run(f"git {arguments[0]}", "git", *arguments, **environment)


def dvc(*arguments: str) -> str:
    """Run DVC and return what it prints. Raises LooplineError with DVC's own words."""
    return _run(f"dvc {arguments[0]}", sys.executable, "-m", "dvc", *arguments)


def as_it_stands(root: Path) -> tuple[str, list[str]]:
    """Make a commit of the working tree at `root`; return its hash, and the files in it that HEAD does not have so.

    The commit follows HEAD and holds changed tracked files and new files of the pipeline. No branch moves and nothing is
    staged. Without such files it is HEAD itself.
    """
    at = ("-C", str(root))
    head = git(*at, "rev-parse", "HEAD")
    with tempfile.TemporaryDirectory() as aside:
        index = shutil.copy(root / git(*at, "rev-parse", "--git-path", "index"), aside)
        git(*at, "add", "--update", GIT_INDEX_FILE=index)
        new = git(*at, "ls-files", "-z", "--others", "--exclude-standard", "--", *PIPELINE).split("\0")
        git(*at, "add", "--", *filter(None, new), GIT_INDEX_FILE=index)
        changed = git(*at, "diff", "--cached", "--name-only", head, GIT_INDEX_FILE=index).splitlines()
        if not changed:
            return head, []
        tree = git(*at, "write-tree", GIT_INDEX_FILE=index)
    message = f"Work in progress: {few(changed)}"
    return git(*at, *IDENTITY, "commit-tree", tree, "-p", head, "-m", message), changed


def _run(name: str, *command: str, **variables: str) -> str:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"} | variables
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except FileNotFoundError as error:
        raise LooplineError(f"`{name}` did not start: dataset versions need git") from error
    if done.returncode:
        raise LooplineError(
            f"`{name}` failed: {(done.stderr or done.stdout).strip() or f'exit code {done.returncode}, without a word'}"
        )
    return done.stdout.rstrip("\n")


def check_ready(folder: Path) -> None:
    """Refuse where a commit would take more along than the batch, or would be lost. Raises LooplineError."""
    if git("rev-parse", "--show-prefix"):
        raise LooplineError("run this from the repository's root")
    if git("rev-parse", "--abbrev-ref", "HEAD") == "HEAD":
        raise LooplineError(
            "no branch is checked out, a commit would be lost: `git switch main` (or another branch) first"
        )
    staged = git("diff", "--cached", "--name-only").splitlines()
    if staged:
        raise LooplineError(f"there are staged changes ({few(staged)}): commit them or `git restore --staged .` first")
    changed = git("status", "--porcelain", "--untracked-files=all", "--", str(folder)).splitlines()
    if changed:
        raise LooplineError(
            f"{folder} has changes that no commit has ({few([line[3:] for line in changed])}): commit or remove them"
        )


def check_remote(remote: str) -> None:
    """Raises LooplineError if DVC knows no remote of that name."""
    from dvc.config import Config

    known = list(Config(".dvc")["remote"])
    if remote not in known:
        raise LooplineError(
            f"DVC has no remote {remote!r}, it has {', '.join(known)}: `dvc remote add {remote} URL` first"
        )


def add_folder(source: Path, target: Path, *, remote: str | None, tag: str, base_tag: str | None, message: str) -> None:
    """Copy `source` to `target`, put it under DVC, commit that alone, and set tags.

    remote: the DVC remote that keeps the folder, None for the default one. tag: of the new commit. base_tag: of the one
    before it, if it is to have one.
    On any failure everything is put back as it was; DVC's cache may keep the content, which `dvc gc` removes.
    """
    pointer, ignored = target.with_name(target.name + ".dvc"), target.with_name(".gitignore")
    own = [str(pointer), str(ignored)]
    before = git("rev-parse", "HEAD")
    with ExitStack() as undo:
        undo.callback(_restore, target, pointer, ignored, ignored.read_bytes() if ignored.exists() else None)
        _copy(source, target)
        dvc("add", str(target))
        if remote is not None:
            content = yaml.safe_load(pointer.read_text(encoding="utf-8"))
            content["outs"][0]["remote"] = remote
            pointer.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        undo.callback(git, "reset", "--quiet", "--", *own)
        git("add", "--", *own)
        git("commit", "--quiet", f"--message={message}", "--", *own)
        undo.callback(git, "reset", "--quiet", "--soft", before)
        if base_tag is not None:
            git("tag", "--annotate", "--message=The data before the first labelled batch", base_tag, before)
            undo.callback(git, "tag", "--delete", base_tag)
        git("tag", "--annotate", f"--message={message}", tag)
        undo.pop_all()


def _copy(source: Path, target: Path) -> None:
    """Copy aside first: a copy that breaks off leaves nothing where datasets are looked for."""
    aside = INCOMING / target.parent.name / target.name
    shutil.rmtree(aside, ignore_errors=True)
    try:
        shutil.copytree(source, aside, ignore=_never_data)
    except OSError as error:
        raise LooplineError(f"{source} cannot be copied: {error}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(aside, target)


def _never_data(_folder: str, names: list[str]) -> set[str]:
    """What is not copied. Some of it would make git or DVC look away from a part of the batch."""
    from loopline.data.formats.common import SYSTEM  # with Pillow, which the retrainer's container has not

    return {name for name in names if name.startswith(".") or name.endswith(".dvc") or name.lower() in SYSTEM}


def _restore(target: Path, pointer: Path, ignored: Path, content: bytes | None) -> None:
    shutil.rmtree(target, ignore_errors=True)
    pointer.unlink(missing_ok=True)
    if content is None:
        ignored.unlink(missing_ok=True)
    else:
        ignored.write_bytes(content)


def few(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
