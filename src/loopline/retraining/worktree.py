"""A run's git worktree: it has its own branch, shares the repository's DVC cache, and may hold the champion's weights.

`loopline retrainer worktree RUN` creates it anew and replaces what an interrupted attempt left. The branch begins with the
repository's working tree: uncommitted changes become its first commit.
"""

from __future__ import annotations

import configparser
import hashlib
import re
import shutil
from pathlib import Path

import yaml

from loopline.data import repository
from loopline.errors import LooplineError
from loopline.stages.stage_files import START


def folder_of(root: Path, run: str) -> Path:
    """The folder of a run's worktree."""
    return root / ".loopline/retrainer/worktrees" / run


def make(root: Path, run: str, model: str, start_from: str) -> Path:
    """Create the run's worktree on the branch retrain/<run>, which begins with the working tree of `root`; return its folder.

    start_from: scratch or champion. Raises LooplineError if the champion's weights are missing.
    """
    folder = folder_of(root, run)
    remove(root, folder)
    branch = f"retrain/{run}"
    began = f"branch.{branch}.began"  # the commit on which the branch began; git deletes this setting with the branch
    if repository.git("-C", str(root), "branch", "--list", branch):
        # Delete the data versions of the interrupted attempt. HEAD may have moved, so compare with the branch's base.
        base = repository.git("-C", str(root), "config", began)
        own = repository.git("-C", str(root), "tag", "--list", "data/*", "--merged", branch, "--no-merged", base)
        for tag in own.splitlines():
            repository.git("-C", str(root), "tag", "--delete", tag)
        repository.git("-C", str(root), "branch", "--quiet", "-D", branch)
    folder.parent.mkdir(parents=True, exist_ok=True)
    head, _ = repository.as_it_stands(root)
    repository.git("-C", str(root), "config", began, head)
    repository.git("-C", str(root), "worktree", "add", "--quiet", "-b", branch, str(folder), head)
    _share_cache(root, folder)
    batches = sorted(map(str, (folder / "data/batches" / model).glob("*.dvc")))
    if batches:
        repository.dvc("--cd", str(folder), "checkout", *batches)
    if start_from == "champion":
        _start_from(root / "models" / model / "train", folder, model)
    return folder


def remove(root: Path, folder: Path) -> None:
    """Remove the worktree if it exists; keep its branch."""
    shutil.rmtree(folder, ignore_errors=True)
    repository.git("-C", str(root), "worktree", "prune")


def _share_cache(root: Path, folder: Path) -> None:
    """Let DVC in the worktree use the repository's cache, so that no data is copied or lost when the worktree is removed."""
    config = configparser.ConfigParser(interpolation=None)
    config.read([root / ".dvc/config", root / ".dvc/config.local"], encoding="utf-8")
    if not config.has_section("cache"):
        config.add_section("cache")
    cache = config["cache"].get("dir", "cache")
    config["cache"]["dir"] = str((root / ".dvc" / cache).resolve())
    with (folder / ".dvc/config.local").open("w", encoding="utf-8") as file:
        config.write(file)


def _start_from(trained: Path, folder: Path, model: str) -> None:
    """Copy the weights into the worktree, and set their path in params.yaml: relative, and with a hash of their content."""
    weights = trained / "model.safetensors"
    if not weights.is_file():
        raise LooplineError(
            f"start_from: champion needs {weights}: fetch it with `dvc checkout`, or set start_from: scratch"
        )
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    shutil.copytree(trained, folder / START / digest)
    path = folder / "params.yaml"
    path.write_text(
        pretrained(path.read_text(encoding="utf-8"), model, f"{START}/{digest}/model.safetensors"), encoding="utf-8"
    )


def pretrained(text: str, model: str, value: str) -> str:
    """The text of params.yaml with this model's `train.pretrained` set; comments stay. Raises LooplineError without the key."""
    pattern = re.compile(
        rf"^  {re.escape(model)}:\n(?:(?:    .*)?\n)*?      pretrained: *([^#\n]*?)(?= *(?:#.*)?$)", re.MULTILINE
    )
    if (match := pattern.search(text)) is None:
        raise LooplineError(f"params.yaml has no key models.{model}.train.pretrained: add it with the value null")
    changed = text[: match.start(1)] + value + text[match.end(1) :]
    assert yaml.safe_load(changed)["models"][model]["train"]["pretrained"] == value
    return changed
