"""A clone of the repository for the drill, so that its data versions, registry and decisions do not touch the repository's.

The clone begins with the repository's working tree: uncommitted changes become a commit of the clone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from loopline.data import repository
from loopline.errors import LooplineError

CACHE = "[cache]\n    dir = {}\n"


class Scratch:
    """The clone at `folder`, with the data and models of the repository at `root` from its DVC cache."""

    def __init__(self, root: Path, folder: Path, model: str) -> None:
        """Create the clone anew, with this model's data and bundle. Raises LooplineError if the repository has not trained it.

        The attribute `uncommitted` lists the files that only the clone has committed.
        """
        self.root, self.folder = root.resolve(), folder.resolve()
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.environment = os.environ | {
            "PYTHONPATH": str(self.folder / "src"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db",
            "LOOPLINE_DECISIONS": str(self.folder / "decisions/log.jsonl"),
            "LOOPLINE_ACTOR": "drill",
            "DVC_NO_ANALYTICS": "1",
        }
        for role in ("AUTHOR", "COMMITTER"):
            self.environment |= {f"GIT_{role}_NAME": "Loopline drill", f"GIT_{role}_EMAIL": "drill@localhost"}
        self.run("git", "clone", "--quiet", "--shared", str(self.root), str(self.folder), at=self.root)
        commit, self.uncommitted = repository.as_it_stands(self.root)
        self.run("git", "reset", "--quiet", "--hard", commit)
        # The clone has a cache of its own, which starts with hard links to the files of the repository's cache.
        if (cache := self._cache()).is_dir():
            shutil.copytree(cache, self.folder / ".dvc/cache", copy_function=os.link)
        (self.folder / ".dvc/config.local").write_text(CACHE.format(self.folder / ".dvc/cache"), encoding="utf-8")
        try:
            stages = (f"{stage}@{model}" for stage in ("package", "ingest", "train"))
            self.run(sys.executable, "-m", "dvc", "checkout", *stages)  # with --quiet DVC would not say why it fails
        except LooplineError as error:
            raise LooplineError(f"the drill needs the trained models: run `make repro` first: {error}") from error

    def _cache(self) -> Path:
        return Path(self.run(sys.executable, "-m", "dvc", "cache", "dir", at=self.root).strip())

    def run(self, *command: str, at: Path | None = None, codes: tuple[int, ...] = (0,)) -> str:
        """Run the command and return what it prints. Raises LooplineError with its output if its exit code is not in `codes`."""
        done = subprocess.run(
            command, cwd=at or self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode not in codes:
            output = f"{done.stdout.strip()}\n{done.stderr.strip()}".strip()[-1500:]
            raise LooplineError(
                f"`{' '.join(command[:6])}` ended with {done.returncode}:\n{output or 'it printed nothing'}"
            )
        return done.stdout

    def loopline(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        """Run a verb of Loopline in the clone, and return what it prints."""
        return self.run(sys.executable, "-m", "loopline.cli", *arguments, codes=codes)

    def remove(self) -> None:
        """Remove the clone."""
        shutil.rmtree(self.folder, ignore_errors=True)
