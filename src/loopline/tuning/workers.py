"""Run the trials of a generation: in processes of this machine, or as tasks of Ray. Where they run changes no outcome."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from loopline.errors import LooplineError
from loopline.lib import files, ray_cluster
from loopline.tuning import trial
from loopline.tuning.trial import Outcome, TrialJob

LOOK_SECONDS = 0.2
MOST_DEATHS = 3  # of one trial's process without a finished epoch between them
DIED = Outcome(state="failed", reason=f"its process was killed {MOST_DEATHS} times, perhaps for its memory")
TAIL = 2000  # characters of a log that an error shows
Work = Sequence[tuple[TrialJob, Path]]  # jobs that have no outcome yet, each with its folder
Finished = Iterator[tuple[TrialJob, Outcome]]


class Running:
    """A trial's process. deaths: how often it was killed since its last finished epoch."""

    def __init__(self, job: TrialJob, folder: Path) -> None:
        """Start the process."""
        self.job, self.folder, self.deaths, self.seen = job, folder, 0, 0.0
        trial.made(folder)
        files.write(folder / trial.JOB, json.dumps(asdict(job)))
        self.start()

    def start(self) -> None:
        """Start the process, which continues from the last checkpoint."""
        with (self.folder / trial.LOG).open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "loopline.tuning.trial", str(self.folder), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def outcome(self) -> Outcome | None:
        """Return the outcome, None while the trial runs. A killed process is started again. Raises LooplineError if it failed."""
        code = self.process.poll()
        if code is None:
            return None
        if code == 0 and (outcome := trial.read(self.folder)):
            return outcome
        if code > 0:
            tail = (self.folder / trial.LOG).read_text(encoding="utf-8", errors="replace")[-TAIL:]
            raise LooplineError(f"trial {self.job.number} failed; the end of {self.folder / trial.LOG}:\n{tail}")
        reached = max((path.stat().st_mtime for path in (self.folder / trial.CHECKPOINTS).rglob("*.pt")), default=0.0)
        self.deaths = 1 if reached > self.seen else self.deaths + 1
        self.seen = reached
        if self.deaths >= MOST_DEATHS:
            return DIED
        self.start()
        return None

    def end(self) -> None:
        """End the process. Its last finished epoch is kept."""
        self.process.kill()
        self.process.wait()


@contextmanager
def in_processes(most: int) -> Iterator[Callable[[Work], Finished]]:
    """Yield a function that runs trials in processes of this machine, `most` at a time."""
    yield partial(processes, most=most)


def processes(work: Work, most: int) -> Finished:
    """Run up to `most` trials at a time, each in a process; yield each as it ends."""
    waiting, running = list(work), list[Running]()
    try:
        while waiting or running:
            while waiting and len(running) < most:
                running.append(Running(*waiting.pop(0)))
            for each in list(running):
                if outcome := each.outcome():
                    running.remove(each)
                    yield each.job, outcome
            time.sleep(LOOK_SECONDS)
    finally:  # an error or an interrupt too
        for each in running:
            each.end()


@contextmanager
def on_ray(cpus: int) -> Iterator[Callable[[Work], Finished]]:
    """Yield a function that runs trials as tasks of Ray, each on one core. cpus: of a local cluster."""
    with ray_cluster.joined(cpus) as ray:
        yield partial(_tasks, ray)


def _tasks(ray: Any, work: Work) -> Finished:
    # A task that dies with its worker or its node is repeated. max_calls: each in a new process, as without Ray.
    task = ray.remote(num_cpus=1, max_calls=1, max_retries=MOST_DEATHS - 1)(_task)
    data = {path: ray.put(Path(path).read_bytes()) for path in {job.manifest for job, _ in work}}
    pending = {task.remote(asdict(job), data[job.manifest], folder.name): (job, folder) for job, folder in work}
    while pending:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        job, folder = pending.pop(done)
        try:
            outcome, files_of = ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise LooplineError(f"trial {job.number} failed: {error.cause}") from error
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError):
            yield job, DIED  # and is not kept: with fewer workers it may have enough memory
            continue
        except ray.exceptions.RayError as error:
            raise LooplineError(f"Ray lost trial {job.number}, so start the search again: {error}") from error
        for name, content in files_of.items():
            files.write(trial.made(folder / trial.TRAINED) / name, content)
        files.write(folder / trial.JOB, json.dumps(asdict(job)))
        trial.write(folder, outcome)
        yield job, outcome


def _task(content: dict[str, Any], manifest: bytes, name: str) -> tuple[Outcome, dict[str, bytes]]:
    """Run a trial on a node, and return its outcome and the files of its weights. name: of the folder that a repeated task finds."""
    folder = trial.made(Path(tempfile.gettempdir()) / "loopline-trials" / name)
    files.write(folder / "manifest.parquet", manifest)
    outcome = trial.run(replace(TrialJob(**content), manifest=str(folder / "manifest.parquet")), folder)
    trained = folder / trial.TRAINED
    weights = {path.name: path.read_bytes() for path in trained.iterdir()} if outcome.state == "complete" else {}
    shutil.rmtree(folder)
    return outcome, weights
