"""The retrainer's verbs."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from loopline.cli.verbs import JOURNAL, Verbs, models, verb
from loopline.errors import LooplineError

if TYPE_CHECKING:
    from loopline.retraining.run_store import RetrainerStore, Run


def _store() -> RetrainerStore:
    from loopline.retraining import FOLDER
    from loopline.retraining.run_store import RetrainerStore

    return RetrainerStore(_root() / FOLDER)


def _root() -> Path:
    """The repository's root, also from one of its worktrees; without git, the current folder if params.yaml is in it."""
    from loopline import settings
    from loopline.data import repository

    if settings.PARAMS.exists() and not Path(".git").exists():
        return Path.cwd()

    return Path(repository.git("rev-parse", "--path-format=absolute", "--git-common-dir")).parent


def _listen(options: argparse.Namespace) -> int:
    import logging

    from loopline.lib import credentials
    from loopline.observability import rules
    from loopline.retraining import alerts, policy, webhook
    from loopline.retraining.facts import Sources
    from loopline.retraining.runs import Place
    from loopline.retraining.worker import Worker

    os.environ.setdefault("LOOPLINE_ACTOR", "retrainer")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    loaded, secrets, root = policy.load(options.policy), alerts.secrets(), Path.cwd()
    if loaded.where == "here" and not (root / ".git").exists():
        raise LooplineError(
            f"{options.policy} says `where: here`, which trains in a clone of the repository, but {root} is not one: "
            "run `make retrainer` in a clone, or set `where: github` (docs/retraining.md)"
        )
    if loaded.where == "github" and not credentials.secret("LOOPLINE_GITHUB_TOKEN"):
        raise LooplineError(f"{options.policy} says `where: github`, which needs the variable LOOPLINE_GITHUB_TOKEN")
    window = options.window or loaded.window
    try:
        rules.seconds(window)
    except ValueError as error:
        raise LooplineError(f"--window: {error}") from error
    place = Place(root, options.journal.absolute(), options.policy.absolute())
    sources = Sources(prometheus=options.prometheus, journal=place.journal, repository=root, window=window)
    worker = Worker(store=_store(), policy=loaded, place=place, sources=sources)
    webhook.run(worker, secrets, models(), options.port, options.host)
    return 0


def _status(_: argparse.Namespace) -> int:
    import json

    from loopline.retraining import worker

    store = _store()
    if reason := worker.paused(store):
        print(f"paused: {reason}")
    for row in store.alerts():
        if worker.waits(row):
            reasons = json.loads(row.reasons) if row.reasons else ["not looked at yet"]
            print("\n  ".join([f"{row.id} {row.name}: {row.action or 'new'}", *reasons]))
    for run in store.runs():
        print(f"{run.id} {run.result}" if run.result else "\n  ".join(_under_way(run)))
    if not store.alerts():
        print("no alert came yet, so nothing was decided")
    elif all(run.result for run in store.runs()):
        print("no run is under way")
    return 0


def _under_way(run: Run) -> list[str]:
    """The run's step with the minutes since the run's start, and the last line of the step's log."""
    import time

    from loopline.retraining import RUNS_FOLDER, runs

    line = runs.last_line(_root() / RUNS_FOLDER / run.id / f"{run.step}.log")
    head = f"{run.id} under way for {(time.time() - run.started) / 60:.1f} min, step {run.step}"
    return [head, *([line] if line else [])]


def _run(options: argparse.Namespace) -> int:
    import signal

    from loopline.retraining import RUNS_FOLDER, worker

    os.environ.setdefault("LOOPLINE_ACTOR", "retrainer")
    stop, over = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    journal = str(options.journal)
    journal = journal if "://" in journal else str(Path(journal).absolute())
    policy_file, store = options.policy.absolute(), _store()
    os.chdir(_root())  # whose registry, decision log and params.yaml count
    logs = RUNS_FOLDER / options.run_id
    printer = threading.Thread(target=_follow, args=(logs, over))
    printer.start()
    try:
        run = worker.run_to_gate(options.model, options.run_id, journal, policy_file, store, stop)
    finally:
        over.set()
        printer.join()
    report = Path("reports/retraining") / run.id / "report.md"
    where = f"evidence in {report}, logs" if report.exists() else "logs"
    print(f"{run.id}: {run.result or f'stopped in step {run.step}; the same command resumes it'}; {where} in {logs}")
    return {"succeeded": 0, "refused": 2}.get(str(run.result), 1)


def _follow(logs: Path, over: threading.Event) -> None:
    """Print what is added to the logs in this folder until `over` is set."""
    shown = {log: log.stat().st_size for log in logs.glob("*.log")}
    last = False
    while not last:
        last = over.wait(0.2)
        for log in sorted(logs.glob("*.log"), key=lambda log: log.stat().st_mtime):
            with log.open("rb") as file:
                file.seek(shown.get(log, 0))
                sys.stdout.write(file.read().decode("utf-8", "replace"))
                shown[log] = file.tell()
        sys.stdout.flush()


def _approve(options: argparse.Namespace) -> int:
    _store().approve(options.run_id)
    print(f"{options.run_id}: approved")
    return 0


def _pause(options: argparse.Namespace) -> int:
    (_store().folder / "paused").write_text(options.reason, encoding="utf-8")
    print("paused: no run starts until `loopline retrainer resume`; a run that is under way continues")
    return 0


def _resume(_: argparse.Namespace) -> int:
    (_store().folder / "paused").unlink(missing_ok=True)
    print("resumed")
    return 0


def _worktree(options: argparse.Namespace) -> int:
    from loopline.data import repository
    from loopline.retraining import policy, worktree

    run, root = _store().run(options.run_id), _root()
    folder = worktree.make(root, run.id, run.model, policy.load(options.policy).start_from)
    if uncommitted := repository.git("-C", str(root), "diff", "--name-only", "HEAD", f"retrain/{run.id}").splitlines():
        print(f"the branch begins with changes that are not committed here: {repository.few(uncommitted)}")
    print(folder)
    return 0


def _report(options: argparse.Namespace) -> int:
    from loopline.retraining import run_report

    root = _root()
    path, decision = run_report.make(_store().run(options.run_id), root, root / options.journal)
    print("\n  ".join([f"{path}: {'accepted' if decision.promote else 'refused'}", *decision.reasons]))
    return 0 if decision.promote else 2


def _dispatch(options: argparse.Namespace) -> int:
    from loopline.retraining import github, policy

    run, target = _store().run(options.run_id), policy.load(options.policy).github
    if target is None:
        raise LooplineError(f"{options.policy} names no repository: add `github: {{repository: owner/name}}`")
    print(github.dispatch(target, model=run.model, run=run.id))
    return 0


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    text = "receive alerts by webhook, decide, retrain; tokens come from the environment (docs/retraining.md)"
    listen = verb(verbs, "retrainer", _listen, text)
    listen.add_argument("--port", type=int, default=9095, help="port to listen on")
    listen.add_argument("--host", default="127.0.0.1", help="address to listen on")
    listen.add_argument(
        "--policy", type=Path, default=Path("monitoring/retraining.yaml"), help="file with the retraining policy"
    )
    listen.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL", help="address of Prometheus")
    listen.add_argument("--journal", type=Path, default=JOURNAL, help="journal's folder that labels come from")
    listen.add_argument(
        "--window", help="length of the traffic window to judge, as in the rules, e.g. 1h (default: the policy's)"
    )
    actions = listen.add_subparsers(metavar="VERB")
    verb(actions, "status", _status, "show waiting alerts with the reasons, and the runs")
    pause = verb(actions, "pause", _pause, "start no more runs until `resume`: the kill switch")
    pause.add_argument("reason", nargs="?", default="by hand", help="reason to show")
    verb(actions, "resume", _resume, "end the pause")
    text = "carry out or resume a run without an alert, up to its gate; exits with 2 if the challenger is refused"
    start = verb(actions, "run", _run, text)
    start.add_argument("model", help="name of the model")
    start.add_argument("run_id", metavar="RUN", help="id of the new run, or of the one to resume")
    text = f"folder or URL of the journal that labels come from (default: {JOURNAL})"
    start.add_argument("--journal", default=argparse.SUPPRESS, metavar="FOLDER_OR_URL", help=text)
    for name, run, text in (
        ("approve", _approve, "approve the run of an alert that waits for approval"),
        ("worktree", _worktree, "make a run's worktree (a step of the run)"),
        (
            "report",
            _report,
            "judge a run's challenger and write the evidence (the run's gate); exits with 2 if it is refused",
        ),
        ("dispatch", _dispatch, "start retrain.yml on GitHub for a run (a step of the run)"),
    ):
        command = verb(actions, name, run, text)
        command.add_argument(
            "run_id", metavar="RUN", help="id of the alert or run, as `loopline retrainer status` shows it"
        )
