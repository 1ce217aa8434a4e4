"""A run's git worktree: a branch of its own, the repository's DVC cache, and the champion's weights if a run starts from them.

`loopline retrainer worktree RUN` makes it anew, whatever a run that broke off left there. The branch begins with what stands
in the repository's working tree: a commit of its own holds what nobody has committed yet.
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

START = ".loopline/start"  # in the worktree: neither git nor DVC looks there


def folder_of(root: Path, run: str) -> Path:
    """Where a run works."""
    return root / ".loopline/retrainer/worktrees" / run


def make(root: Path, run: str, model: str, start_from: str) -> Path:
    """Make the run's worktree, on the branch retrain/<run> from what stands in the working tree of `root`."""
    folder = folder_of(root, run)
    remove(root, folder)
    branch = f"retrain/{run}"
    began = f"branch.{branch}.began"  # the commit that the run's own ones follow; git forgets it with the branch
    if repository.git("-C", str(root), "branch", "--list", branch):
        # Data versions of an attempt that broke off, and of no commit before it: HEAD may have moved since.
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
    """Remove the worktree, if it is there; its branch stays."""
    shutil.rmtree(folder, ignore_errors=True)
    repository.git("-C", str(root), "worktree", "prune")


def _share_cache(root: Path, folder: Path) -> None:
    """DVC finds and keeps data in the repository's cache: nothing is copied twice, nothing is lost with the worktree."""
    config = configparser.ConfigParser(interpolation=None)
    config.read([root / ".dvc/config", root / ".dvc/config.local"], encoding="utf-8")
    if not config.has_section("cache"):
        config.add_section("cache")
    cache = config["cache"].get("dir", "cache")
    config["cache"]["dir"] = str((root / ".dvc" / cache).resolve())
    with (folder / ".dvc/config.local").open("w", encoding="utf-8") as file:
        config.write(file)


def _start_from(trained: Path, folder: Path, model: str) -> None:
    """Copy the weights in, and say so in params.yaml by a path that holds on every machine and names their content."""
    weights = trained / "model.safetensors"
    if not weights.is_file():
        raise LooplineError(f"start_from: champion, but {weights} is not there: `dvc checkout`, or start_from: scratch")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    shutil.copytree(trained, folder / START / digest)
    path = folder / "params.yaml"
    path.write_text(
        pretrained(path.read_text(encoding="utf-8"), model, f"{START}/{digest}/model.safetensors"), encoding="utf-8"
    )


def pretrained(text: str, model: str, value: str) -> str:
    """The text of params.yaml with this model's `train.pretrained`; every comment stays. Raises LooplineError where it has none."""
    part = re.compile(
        rf"^  {re.escape(model)}:\n(?:(?:    .*)?\n)*?      pretrained: *([^#\n]*?)(?= *(?:#.*)?$)", re.MULTILINE
    )
    if (found := part.search(text)) is None:
        raise LooplineError(f"params.yaml: models.{model}.train.pretrained is not there to be set")
    changed = text[: found.start(1)] + value + text[found.end(1) :]
    assert yaml.safe_load(changed)["models"][model]["train"]["pretrained"] == value
    return changed
