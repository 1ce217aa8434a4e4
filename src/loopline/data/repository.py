"""Add a folder to DVC and git in one step: files, commit and tags are either all created or all rolled back.

Runs `git` and `dvc` as programs in the current folder, which must be the repository's root.
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
# New files that belong to the pipeline. Other new files, such as a dataset in the repository, may be large or secret.
PIPELINE = ("models", "src", *(f":(glob)data/{name}" for name in ("*/*.json", "*/*.csv", "**/*.dvc", "**/.gitignore")))
IDENTITY = ("-c", "user.name=Loopline", "-c", "user.email=loopline@localhost")


def git(*arguments: str, **environment: str) -> str:
    """Run git with extra environment variables and return its output. Raises LooplineError with git's message."""
    return _run(f"git {arguments[0]}", "git", *arguments, **environment)


def dvc(*arguments: str) -> str:
    """Run DVC and return its output. Raises LooplineError with DVC's message."""
    return _run(f"dvc {arguments[0]}", sys.executable, "-m", "dvc", *arguments)


def as_it_stands(root: Path) -> tuple[str, list[str]]:
    """Commit the working tree at `root`; return the commit's hash and the files that differ from HEAD.

    The commit's parent is HEAD. It holds changed tracked files and new files of the pipeline; without any, HEAD itself is
    returned. No branch moves and nothing is staged.
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
            f"`{name}` failed: {(done.stderr or done.stdout).strip() or f'exit code {done.returncode}, no output'}"
        )
    return done.stdout.rstrip("\n")


def check_ready(folder: Path) -> None:
    """Raise LooplineError if a commit would include more than the batch, or would be lost."""
    if git("rev-parse", "--show-prefix"):
        raise LooplineError("run this from the repository's root")
    if git("rev-parse", "--abbrev-ref", "HEAD") == "HEAD":
        raise LooplineError(
            "no branch is checked out, so a commit would be lost: run `git switch main` (or another branch) first"
        )
    staged = git("diff", "--cached", "--name-only").splitlines()
    if staged:
        raise LooplineError(
            f"there are staged changes ({few(staged)}): commit them, or run `git restore --staged .` first"
        )
    changed = git("status", "--porcelain", "--untracked-files=all", "--", str(folder)).splitlines()
    if changed:
        raise LooplineError(
            f"{folder} has uncommitted changes ({few([line[3:] for line in changed])}): commit or remove them"
        )


def check_remote(remote: str) -> None:
    """Raise LooplineError if DVC has no remote with this name."""
    from dvc.config import Config

    remotes = list(Config(".dvc")["remote"])
    if remote not in remotes:
        raise LooplineError(
            f"DVC has no remote {remote!r}, only {', '.join(remotes)}: run `dvc remote add {remote} URL` first"
        )


def add_folder(source: Path, target: Path, *, remote: str | None, tag: str, base_tag: str | None, message: str) -> None:
    """Copy `source` to `target`, put it under DVC, commit only that, and set tags.

    remote: the DVC remote that stores the folder, None for the default remote. tag: the tag of the new commit.
    base_tag: a tag for the commit before it, or None.
    Any failure rolls everything back, but DVC's cache may keep the content; `dvc gc` removes it.
    """
    pointer, ignored = target.with_name(target.name + ".dvc"), target.with_name(".gitignore")
    paths = [str(pointer), str(ignored)]
    before = git("rev-parse", "HEAD")
    with ExitStack() as undo:
        undo.callback(_restore, target, pointer, ignored, ignored.read_bytes() if ignored.exists() else None)
        _copy(source, target)
        dvc("add", str(target))
        if remote is not None:
            content = yaml.safe_load(pointer.read_text(encoding="utf-8"))
            content["outs"][0]["remote"] = remote
            pointer.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        undo.callback(git, "reset", "--quiet", "--", *paths)
        git("add", "--", *paths)
        git("commit", "--quiet", f"--message={message}", "--", *paths)
        undo.callback(git, "reset", "--quiet", "--soft", before)
        if base_tag is not None:
            git("tag", "--annotate", "--message=The data before the first labelled batch", base_tag, before)
            undo.callback(git, "tag", "--delete", base_tag)
        git("tag", "--annotate", f"--message={message}", tag)
        undo.pop_all()


def _copy(source: Path, target: Path) -> None:
    """Copy into a temporary folder first, so that an interrupted copy is never taken for a batch."""
    aside = INCOMING / target.parent.name / target.name
    shutil.rmtree(aside, ignore_errors=True)
    try:
        shutil.copytree(source, aside, ignore=_never_data)
    except OSError as error:
        raise LooplineError(f"{source} cannot be copied: {error}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(aside, target)


def _never_data(_folder: str, names: list[str]) -> set[str]:
    """The names that are not copied. Some of them would make git or DVC ignore a part of the batch."""
    from loopline.data.formats.common import SYSTEM  # imports Pillow, which the retrainer's container lacks

    return {name for name in names if name.startswith(".") or name.endswith(".dvc") or name.lower() in SYSTEM}


def _restore(target: Path, pointer: Path, ignored: Path, content: bytes | None) -> None:
    shutil.rmtree(target, ignore_errors=True)
    pointer.unlink(missing_ok=True)
    if content is None:
        ignored.unlink(missing_ok=True)
    else:
        ignored.write_bytes(content)


def few(names: list[str]) -> str:
    """The first three names, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
