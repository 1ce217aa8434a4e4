"""Execute the steps of a run, one process each, and end the processes that a killed retrainer left behind."""

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
from loopline.release import decisions
from loopline.retraining import RUNS_FOLDER, alerts, github
from loopline.retraining.policy import DISPATCH, RetrainingPolicy, Step
from loopline.retraining.run_store import RetrainerStore, Run
from loopline.retraining.worktree import folder_of, remove

REFUSED = 2  # the exit code of a step that evaluates the candidate and refuses it
# A step first reads a line, which is sent once its process id is saved. If the retrainer dies earlier, the step ends.
LAUNCHER = ["/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "retrainer"]
END_SECONDS = 10.0
# A run survives this many kills of its steps, by a person or for lack of memory. The next one fails it.
KILLS = 2


@dataclass(frozen=True)
class Place:
    """Absolute paths: the repository from which runs start, the journal that holds the labels, and the policy's file."""

    repository: Path
    journal: Path
    policy: Path

    def logs(self, run: str) -> Path:
        """The folder of a run's logs."""
        return self.repository / RUNS_FOLDER / run


def carry_out(run: Run, policy: RetrainingPolicy, store: RetrainerStore, place: Place, stop: threading.Event) -> None:
    """Execute the run from its current step on, and store its result. On `stop` it returns early and the run stays under way.

    A step that was killed is started again, like a step that was interrupted because the retrainer itself was killed.
    """
    end_left_over(run)
    deadline = run.started + policy.timeout_minutes * 60
    names = [step.name for step in policy.steps]
    if run.step not in names:
        return _finish(run, "failed", f"the policy no longer has the step {run.step}", store, place)
    number, kills = names.index(run.step), run.kills
    if run.pid is not None:  # this step was interrupted
        number = names.index(policy.steps[number].again or run.step)
    while number < len(names):
        step = policy.steps[number]
        due = math.inf if step.own_time else deadline
        code = _execute(step, run, store, place, due, stop)
        if code is None:
            return None
        if code < 0 and kills < KILLS:
            kills += 1
            store.kill(run.id)
            number = names.index(step.again or step.name)
            continue
        log = place.logs(run.id) / f"{step.name}.log"
        if code == REFUSED:
            return _finish(run, "refused", f"step {step.name} refused the candidate: {_tail(log)}", store, place)
        if code:
            late = time.time() > due
            why = (
                f"exceeded the run's time of {policy.timeout_minutes:g} min" if late else f"ended with exit code {code}"
            )
            return _finish(run, "failed", f"step {step.name} {why}: {_tail(log)}", store, place)
        number += 1
        if number < len(names):
            store.step(run.id, names[number])
    return _finish(run, "succeeded", f"every step is done; the last was {names[-1]}", store, place)


def _finish(run: Run, result: str, reason: str, store: RetrainerStore, place: Place) -> None:
    with suppress(LooplineError):  # a worktree that cannot be removed does no harm
        remove(place.repository, folder_of(place.repository, run.id))
    store.end(run, result, reason)


def _execute(
    step: Step, run: Run, store: RetrainerStore, place: Place, deadline: float, stop: threading.Event
) -> int | None:
    """Run one step; return its exit code, negative if a signal ended it, or None if `stop` was set."""
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
                [*LAUNCHER, *command],
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
        _end_group(process.pid)  # the processes that the step had started
    return code


def environment(place: Place, folder: Path, step: str) -> dict[str, str]:
    """A step's environment: its folder's code, the repository's registry and decision log, and none of the retrainer's secrets."""
    hidden = {f"{name}{end}" for name in (alerts.TOKEN, alerts.SECRET) for end in ("", "_FILE")}
    hidden |= set() if step == DISPATCH else {github.TOKEN}
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables.get("PATH", os.defpath)])
    if (folder / "src/loopline").is_dir():
        variables["PYTHONPATH"] = str(folder / "src")
    # A workflow sets a variable that it has no value for to the empty text.
    variables["MLFLOW_TRACKING_URI"] = variables.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place.repository}/mlflow.db"
    # MLflow puts a new experiment's files into the current folder by default, which is deleted with the worktree.
    variables.setdefault("_MLFLOW_SERVER_ARTIFACT_ROOT", str(place.repository / "mlruns"))
    variables |= {
        "LOOPLINE_DECISIONS": str(place.repository / decisions.path()),
        "LOOPLINE_ACTOR": "retrainer",
        "DVC_NO_ANALYTICS": "1",
    }
    for role in ("AUTHOR", "COMMITTER"):
        variables |= {f"GIT_{role}_NAME": "Loopline retrainer", f"GIT_{role}_EMAIL": "retrainer@localhost"}
    return variables


def end_left_over(run: Run) -> None:
    """End the step that a killed retrainer left running, with its children. A process id that was used again is left alone."""
    import psutil

    if run.pid is None:
        return
    with suppress(psutil.NoSuchProcess):
        if psutil.Process(run.pid).create_time() == run.created:
            _end_group(run.pid)


def _end_group(pid: int) -> None:
    """End all processes of the group that the process `pid` leads, or led."""
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
    """The last non-blank line in the last `size` bytes of a log; empty if there is none. Of a progress bar, its last state."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _tail(log: Path) -> str:
    """The end of a log on one line, at most 5 lines and 500 characters, for a reason in the decision log."""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    return " / ".join(text.splitlines()[-5:])[-500:]
