"""Starts the steps of a run, one process each, and ends those that a killed retrainer left behind."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loopline.errors import LooplineError
from loopline.retraining import RUNS_FOLDER, alerts, github
from loopline.retraining.policy import DISPATCH, RetrainingPolicy, Step
from loopline.retraining.state import RetrainerStore, Run
from loopline.retraining.worktree import folder_of, remove

REFUSED = 2  # the exit code of what weighs a candidate and refuses it
# The process waits for a line, so that its number is written down before it does anything; if we die before, it ends.
GATE = ["/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "retrainer"]
END_SECONDS = 10.0
KILLS = (
    2  # times that a run's steps may be killed by somebody, or for want of memory: that says nothing of the candidate
)


@dataclass(frozen=True)
class Place:
    """The repository that trainings start from, the journal that labels come from, the policy's file; absolute paths."""

    repository: Path
    journal: Path
    policy: Path

    def logs(self, run: str) -> Path:
        """Where a run's logs stay."""
        return self.repository / RUNS_FOLDER / run


def carry_out(run: Run, policy: RetrainingPolicy, store: RetrainerStore, place: Place, stop: threading.Event) -> None:
    """Do the run's steps from the one it is in, and give it its result. Returns early, with the run as it stands, on `stop`.

    A step that was killed is begun again, as one that broke off with the retrainer is.
    """
    end_left_over(run)
    deadline = run.started + policy.timeout_minutes * 60
    names = [step.name for step in policy.steps]
    if run.step not in names:
        return _finish(run, "failed", f"step {run.step} is not in the policy any more", store, place)
    number, kills = names.index(run.step), 0
    if run.pid is not None:  # it broke off in the middle of this step
        number = names.index(policy.steps[number].again or run.step)
    while number < len(names):
        step = policy.steps[number]
        due = math.inf if step.own_time else deadline
        code = _do(step, run, store, place, due, stop)
        if code is None:
            return None
        if code < 0 and kills < KILLS:
            kills += 1
            number = names.index(step.again or step.name)
            continue
        log = place.logs(run.id) / f"{step.name}.log"
        if code == REFUSED:
            return _finish(run, "refused", f"step {step.name} refused the candidate: {_tail(log)}", store, place)
        if code:
            late = time.time() > due
            why = f"took the run over {policy.timeout_minutes:g} min" if late else f"ended with exit code {code}"
            return _finish(run, "failed", f"step {step.name} {why}: {_tail(log)}", store, place)
        number += 1
        if number < len(names):
            store.step(run.id, names[number])
    return _finish(run, "succeeded", f"every step is done, {names[-1]} was the last", store, place)


def _finish(run: Run, result: str, reason: str, store: RetrainerStore, place: Place) -> None:
    with suppress(LooplineError):  # what is left is in nobody's way
        remove(place.repository, folder_of(place.repository, run.id))
    store.end(run, result, reason)


def _do(
    step: Step, run: Run, store: RetrainerStore, place: Place, deadline: float, stop: threading.Event
) -> int | None:
    """The exit code; None where we were told to stop."""
    import psutil

    worktree, logs = folder_of(place.repository, run.id), place.logs(run.id)
    logs.mkdir(parents=True, exist_ok=True)
    places = {"model": run.model, "run": run.id, "version": run.version, "journal": str(place.journal)}
    places |= {"policy": str(place.policy)}
    command = step.command(places | {"repository": str(place.repository), "worktree": str(worktree)})
    folder = worktree if step.at == "worktree" else place.repository
    with (logs / f"{step.name}.log").open("ab") as log:
        log.write(f"$ {' '.join(command)}\n".encode())
        log.flush()
        try:
            process = subprocess.Popen(
                [*GATE, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=environment(place, folder, step.name),
                start_new_session=True,
            )
        except OSError as error:
            log.write(f"{error}\n".encode())
            return 1
    assert process.stdin is not None
    store.step(run.id, step.name, process.pid, psutil.Process(process.pid).create_time())
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(b"go\n")
    while (code := process.poll()) is None:
        if stop.wait(0.05) or time.time() > deadline:
            _end_group(process.pid)
            process.wait()
            return None if stop.is_set() else 1
    if code < 0:
        _end_group(process.pid)  # what it had started
    return code


def environment(place: Place, folder: Path, step: str) -> dict[str, str]:
    """Of a step: the code of its folder, the repository's registry and decision log, and none of our secrets."""
    hidden = {f"{name}{end}" for name in (alerts.TOKEN, alerts.SECRET) for end in ("", "_FILE")}
    hidden |= set() if step == DISPATCH else {github.TOKEN}
    found = {name: value for name, value in os.environ.items() if name not in hidden}
    found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), found.get("PATH", os.defpath)])
    if (folder / "src/loopline").is_dir():
        found["PYTHONPATH"] = str(folder / "src")
    found.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{place.repository}/mlflow.db")
    # Where MLflow's own store puts a new experiment's files: by default in the current folder, which goes with the worktree.
    found.setdefault("_MLFLOW_SERVER_ARTIFACT_ROOT", str(place.repository / "mlruns"))
    log = found.get("LOOPLINE_DECISIONS", "decisions/log.jsonl")
    found |= {"LOOPLINE_DECISIONS": str(place.repository / log), "LOOPLINE_ACTOR": "retrainer", "DVC_NO_ANALYTICS": "1"}
    for who in ("AUTHOR", "COMMITTER"):
        found |= {f"GIT_{who}_NAME": "Loopline retrainer", f"GIT_{who}_EMAIL": "retrainer@localhost"}
    return found


def end_left_over(run: Run) -> None:
    """End the step's process that a killed retrainer left, if it is still that one, with all that it started."""
    import psutil

    if run.pid is None:
        return
    with suppress(psutil.NoSuchProcess):
        if psutil.Process(run.pid).create_time() == run.created:
            _end_group(run.pid)


def _end_group(pid: int) -> None:
    """Of the process that leads, or led, a group of its own."""
    import psutil

    group = [process for process in psutil.process_iter() if _group(process.pid) == pid]
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)
        psutil.wait_procs(group, timeout=END_SECONDS)
        os.killpg(pid, signal.SIGKILL)


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def last_line(log: Path, size: int = 4096) -> str:
    """The last line of a log, of its last `size` bytes; empty where there is none. A bar that moves is one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _tail(log: Path) -> str:
    """The last words of a log, for a reason in a sentence."""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    return " / ".join(text.splitlines()[-5:])[-500:]
