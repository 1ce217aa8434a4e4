"""A clone of the repository that the drill works in, so that its data versions, registry and decisions are nobody else's.

It begins with what stands in the working tree: what nobody has committed yet is a commit of the clone.
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
        """Make it anew, with this model. Raises LooplineError where the repository has none yet.

        uncommitted: the files of the working tree that the clone alone has a commit of.
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
        for who in ("AUTHOR", "COMMITTER"):
            self.environment |= {f"GIT_{who}_NAME": "Loopline drill", f"GIT_{who}_EMAIL": "drill@localhost"}
        self.run("git", "clone", "--quiet", "--shared", str(self.root), str(self.folder), at=self.root)
        commit, self.uncommitted = repository.as_it_stands(self.root)
        self.run("git", "reset", "--quiet", "--hard", commit)
        # Its cache begins with the repository's files, as hard links: nothing is copied, and nothing of ours gets into that one.
        if (cache := self._cache()).is_dir():
            shutil.copytree(cache, self.folder / ".dvc/cache", copy_function=os.link)
        (self.folder / ".dvc/config.local").write_text(CACHE.format(self.folder / ".dvc/cache"), encoding="utf-8")
        try:
            stages = (f"{stage}@{model}" for stage in ("package", "ingest", "train"))
            self.run(sys.executable, "-m", "dvc", "checkout", *stages)  # with --quiet it would not say why it fails
        except LooplineError as error:
            raise LooplineError(f"the drill needs the models of `make repro`, run that first: {error}") from error

    def _cache(self) -> Path:
        found = self.run(sys.executable, "-m", "dvc", "cache", "dir", at=self.root).strip()
        return Path(found)

    def run(self, *command: str, at: Path | None = None, codes: tuple[int, ...] = (0,)) -> str:
        """What the command says. Raises LooplineError with its words, where its exit code is none of `codes`."""
        done = subprocess.run(
            command, cwd=at or self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode not in codes:
            said = f"{done.stdout.strip()}\n{done.stderr.strip()}".strip()[-1500:]
            raise LooplineError(
                f"`{' '.join(command[:6])}` ended with {done.returncode}:\n{said or 'it printed nothing'}"
            )
        return done.stdout

    def loopline(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        """Our own verb, in the clone."""
        return self.run(sys.executable, "-m", "loopline.cli", *arguments, codes=codes)

    def remove(self) -> None:
        """Everything of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
