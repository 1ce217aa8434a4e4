"""Run `loopline adopt` in a clone."""

import os
import subprocess
from pathlib import Path

from loopline.data import repository

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    f"GIT_{who}_{what}": "t@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}


def cloned(parent):
    """Return a clone in `parent` with this working tree's files, and no results."""
    folder = parent / "loopline"
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, folder], check=True)
    commit, _ = repository.as_it_stands(ROOT)
    subprocess.run(["git", "reset", "--quiet", "--hard", commit], cwd=folder, check=True)
    return folder


def adopt(clone, *words):
    """Run it there; return the ended process."""
    return subprocess.run(["loopline", "adopt", *words], cwd=clone, env=ENVIRONMENT, capture_output=True, text=True)
