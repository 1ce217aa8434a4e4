"""One trial: a training with its own settings, in a process of its own.

    python -m loopline.tuning.trial FOLDER PID    # PID: of the search; reads FOLDER/job.json, writes FOLDER/outcome.json

A trial depends on its job alone. If its process is killed, the next one continues from the checkpoint and ends with the same outcome.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import loopline
from loopline.errors import LooplineError
from loopline.lib import files

JOB, OUTCOME, CHECKPOINTS, TRAINED, LOG = "job.json", "outcome.json", "work", "train", "log"
CODE = ("tasks", "training", "data")  # rooms
DIGITS = 6  # of a figure
ORPHAN = 75  # exit code: the search that started the process has ended


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """What a trial does. number: its place in the table, from 0. settings: of the model, as params.yaml has them.

    manifest: of the data. code: what `code` gives, so that a node with another version is noticed. cutoffs: epoch -> the least figure
    with which a trial goes on.
    """

    number: int
    model: str
    settings: dict[str, Any]
    seed: int
    manifest: str
    code: str
    cutoffs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a trial. state: `stopped` if a cutoff ended it. value: of the epoch whose weights are kept; None if it failed.

    curve: the figure after each epoch. reason: why it failed.
    """

    state: Literal["complete", "stopped", "failed"]
    value: float | None = None
    epoch: int | None = None
    curve: tuple[float, ...] = ()
    reason: str = ""


class Stopped(Exception):
    """A cutoff ended the training."""


def kept(rows: Sequence[Mapping[str, float]]) -> int:
    """Return the index of the epoch whose weights a training keeps: of the best average precision, or else of the least loss."""
    if "map50_95" in rows[0]:
        return max(range(len(rows)), key=lambda place: rows[place]["map50_95"])
    return min(range(len(rows)), key=lambda place: rows[place]["val_loss"])


def figure(rows: Sequence[Mapping[str, float]], headline: str) -> float:
    """Return the task's headline figure on the validation split, of the epoch whose weights are kept until now."""
    row = rows[kept(rows)]
    return float(row[f"val_{headline}" if f"val_{headline}" in row else headline])


def run(job: TrialJob, folder: Path, *, alive: Callable[[], bool] = lambda: True) -> Outcome:
    """Train, write the weights to `folder`/train and return the outcome. alive: whether the search still runs, asked each epoch.

    A wrong setting or a loss that is not a number is the outcome of this trial. Any other error is raised.
    """
    import torch

    from loopline import tasks
    from loopline.data import manifest
    from loopline.tasks.plugins import part

    if job.code != code():
        raise LooplineError("this machine has another version of Loopline's code: install the same one on every node")
    task = tasks.find(job.settings["task"])
    model = part(job.settings["task"], "parameters").PARAMETERS.model_validate(job.settings)
    torch.set_num_threads(1)  # whatever the environment says: another number gives other weights
    train, val = (manifest.load_split(Path(job.manifest), split) for split in ("train", "val"))
    rows: list[dict[str, float]] = []

    def log(epoch: int, row: dict[str, float]) -> None:
        if not alive():
            sys.exit(ORPHAN)
        rows[epoch - 1 :] = [row]
        if round(figure(rows, task.headline), DIGITS) < job.cutoffs.get(str(epoch), float("-inf")):
            raise Stopped

    def outcome(state: Literal["complete", "stopped"]) -> Outcome:
        curve = tuple(round(figure(rows[: count + 1], task.headline), DIGITS) for count in range(len(rows)))
        if not curve or not isfinite(curve[-1]):
            return Outcome(state="failed", reason=f"the training gave no {task.headline}")
        return Outcome(state=state, value=curve[-1], epoch=kept(rows) + 1, curve=curve)

    work = made(folder / CHECKPOINTS / f"{job.model}-trial-{job.number}")  # its last part is the name in progress lines
    try:
        task.trainer().train(train, val, model, seed=job.seed, out=made(folder / TRAINED), work=work, log=log)
    except Stopped:
        return outcome("stopped")
    except LooplineError as error:
        return Outcome(state="failed", reason=str(error))
    except (MemoryError, torch.OutOfMemoryError):
        return Outcome(state="failed", reason="it needs more memory than there is")
    return outcome("complete")


def code() -> str:
    """Return a sha256 of the code that decides a trial's outcome."""
    rooms, digest = Path(loopline.__file__).parent, hashlib.sha256()
    for path in sorted(path for room in CODE for path in (rooms / room).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def made(folder: Path) -> Path:
    """Return the folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(name: str, search: str) -> None:
    """Run the job in this folder. search: process id of the search."""
    folder = Path(name)
    job = TrialJob(**json.loads((folder / JOB).read_text(encoding="utf-8")))
    outcome = run(job, folder, alive=lambda: os.getppid() == int(search))
    write(folder, outcome)


def write(folder: Path, outcome: Outcome) -> None:
    """Keep the outcome in the folder."""
    files.write(folder / OUTCOME, json.dumps(asdict(outcome)))


def read(folder: Path) -> Outcome | None:
    """Return the outcome in the folder, None if there is none."""
    try:
        content = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Outcome(**content | {"curve": tuple(content["curve"])})


if __name__ == "__main__":
    main(*sys.argv[1:])
