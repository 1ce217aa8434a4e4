"""`loopline status`: processes, served bundles, running stages, the last decisions and firing alerts at a glance."""

from __future__ import annotations

import glob
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from loopline.errors import LooplineError
from loopline.fleet import members
from loopline.lib import processes
from loopline.observability import prometheus_api
from loopline.release import bundle, decisions
from loopline.retraining import FOLDER as RETRAINER
from loopline.retraining.run_store import WAITING, RetrainerStore
from loopline.rollout import state

SERVER = "http://127.0.0.1:8080"  # address of `make serve`, for when `up` started nothing
PROGRESS = Path(".loopline/progress")  # one file for each model in training
DECISIONS = 3  # number of decisions shown


@dataclass(frozen=True)
class PartStatus:
    """A process that `up` started. running: False if it ended and should run."""

    name: str
    address: str
    pid: int | None
    running: bool


@dataclass(frozen=True)
class Served:
    """A served model.

    folder: of a bundle on this machine with this version, or None. trained: version of models/NAME/bundle, or None.
    """

    model: str
    version: str
    folder: str | None
    trained: str | None


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline that runs here. seconds: since its start. folder: relative. progress: `epoch 3 of 10`, or empty."""

    stage: str
    model: str
    seconds: float
    folder: str
    progress: str


@dataclass(frozen=True)
class FiringAlert:
    """An alert that fires. model: empty for an alert about a server."""

    name: str
    severity: str
    model: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Status:
    """The complete status. problems: errors of requests without an answer. steps: commands to run next."""

    parts: list[PartStatus]
    url: str | None
    served: list[Served]
    stages: list[Stage]
    retraining: list[str]
    rollout: str | None
    decided: list[decisions.DecisionRecord]
    alerts: list[FiringAlert]
    problems: list[str]
    steps: list[str]


def look(url: str | None = None, token: str | None = None) -> Status:
    """The status of this repository and this machine. url: of a server; default: the one that `up` started, else port 8080."""
    parts, problems = _parts(), []
    running = {part.name: part.address for part in parts if part.running}
    address = url or running.get("gateway") or running.get("server-1")
    served: list[Served] = []
    try:
        served = [_served(*row) for row in prometheus_api.served(address or SERVER, token).items()]
        address = address or SERVER
    except LooplineError as error:
        problems += [str(error)] if address else []
    alerts: list[FiringAlert] = []
    if "prometheus" in running:
        try:
            alerts = _alerts(running["prometheus"])
        except LooplineError as error:
            problems.append(str(error))
    rollout, log = state.read(), decisions.path()
    return Status(
        parts=parts,
        url=address,
        served=served,
        stages=sorted(_stages(Path.cwd()), key=lambda stage: -stage.seconds),
        retraining=list(_retraining(RETRAINER)),
        rollout=str(rollout) if rollout else None,
        decided=list(decisions.read(log).records[-DECISIONS:]) if log.exists() else [],
        alerts=alerts,
        problems=problems,
        steps=_steps(up=bool(running), answers=bool(served)),
    )


def _parts(folder: Path = members.FOLDER) -> list[PartStatus]:
    running = processes.running(folder)
    parts = [PartStatus(process.name, process.address, process.pid, True) for process in running]
    names = {process.name for process in running}
    path = folder / "parts.json"
    if not running or not path.exists():
        return parts
    rows = json.loads(path.read_text(encoding="utf-8"))
    return parts + [PartStatus(row["name"], row["address"], None, False) for row in rows if row["name"] not in names]


def _served(model: str, version: str) -> Served:
    """The served model, with the folder of its bundle on this machine."""
    newest = Path("models") / model / "bundle"
    trained = None
    if (newest / bundle.SUMS).exists():
        try:
            trained = bundle.read(newest).version[: len(version)]
        except LooplineError:  # the pipeline is writing it now, or it is damaged; `loopline verify` tells which
            trained = None
    folders = [newest] if trained == version else sorted((members.BUNDLES / model).glob(f"{glob.escape(version)}*"))
    return Served(model, version, str(folders[0]) if folders and version else None, trained)


def _stages(root: Path) -> Iterator[Stage]:
    """Running processes `loopline stage NAME MODEL`, as in dvc.yaml, of this repository and of worktrees and clones inside it."""
    import psutil

    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            verbs = [index for index, word in enumerate(words[:-2]) if word == "stage"]
            if not verbs or not any(Path(word).name in ("loopline", "loopline.cli") for word in words[: verbs[0]]):
                continue
            folder = Path(process.cwd())
            if folder == root or root in folder.parents:
                stage, model = words[verbs[0] + 1 : verbs[0] + 3]
                seconds = time.time() - process.create_time()
                yield Stage(stage, model, seconds, str(folder.relative_to(root)), _progress(folder, stage, model))
        except psutil.Error:  # it ended, or it is another user's
            continue


def _progress(folder: Path, stage: str, model: str) -> str:
    """The text that `training.progress_bar` wrote for a training; empty for other stages."""
    try:
        return (folder / PROGRESS / model).read_text(encoding="utf-8") if stage == "train" else ""
    except FileNotFoundError:
        return ""


def _retraining(folder: Path) -> Iterator[str]:
    """Lines about a pause, waiting alerts, the present run, or else the last one."""
    if not (folder / "state.db").exists():
        return
    store = RetrainerStore(folder)
    try:
        if (folder / "paused").exists():
            yield f"paused: {(folder / 'paused').read_text(encoding='utf-8')}"
        waiting = [None, *(action.value for action in WAITING)]
        yield from (
            f"{row.model}: {row.name} {row.id}, {row.action or 'not looked at yet'}"
            for row in store.alerts()
            if row.action in waiting and not row.over
        )
        runs = store.runs()
        under_way = [run for run in runs if run.result is None]
        yield from (f"{run.model}: run {run.id} under way, step {run.step}" for run in under_way)
        if runs and not under_way:
            yield f"{runs[-1].model}: run {runs[-1].id} {runs[-1].result}, {_moment(runs[-1].ended or 0)}"
    finally:
        store.close()


def _alerts(url: str) -> list[FiringAlert]:
    rows = [row.labels for row in prometheus_api.instant(url, 'ALERTS{alertstate="firing"}')]
    alerts = {
        FiringAlert(*(row.get(name, "") for name in ("alertname", "severity", "model", "version"))) for row in rows
    }
    return sorted(alerts, key=lambda alert: (alert.model, alert.name))


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _steps(*, up: bool, answers: bool) -> list[str]:
    """Advice on the command to run next."""
    if answers:
        return [] if up else ["make up starts servers with monitoring"]
    if up:
        return ["make down, then make up: nothing answers; logs are in .loopline/up"]
    if not any(Path("models").glob("*/bundle")):
        return ["make repro makes the bundles that can be served"]
    return ["make serve starts a server, make up one with monitoring, make deploy one behind a gateway"]


def as_json(status: Status) -> str:
    """The status as one JSON object, with the fields of `Status` as keys."""
    return json.dumps(asdict(status), indent=1)


def as_text(status: Status) -> str:
    """The status as text: sections with a heading and lines. A section without lines says so."""
    parts = [
        f"{part.name:22} {part.address or '-':28} {f'process {part.pid}' if part.running else 'ENDED'}"
        for part in status.parts
    ]
    served = [f"{model.model} {model.version}  {_origin(model)}" for model in status.served]
    stages = [_stage_line(stage) for stage in status.stages]
    alerts = [f"{alert.name} ({alert.severity}) {alert.model} {alert.version}".rstrip() for alert in status.alerts]
    watched = any(part.name == "prometheus" and part.running for part in status.parts)
    sections: list[tuple[str, Sequence[str], str]] = [
        ("up", parts, "nothing that `loopline up` or `loopline deploy` started"),
        (f"serves{f' at {status.url}' if status.url else ''}", served, f"no server answers at {status.url or SERVER}"),
        ("runs", stages, "no stage of the pipeline"),
        ("retraining", status.retraining, "no alert, no run"),
        ("rollout", status.rollout.splitlines() if status.rollout else (), "none yet"),
        ("decided last", [line for record in status.decided for line in str(record).splitlines()], "nothing yet"),
        ("fires", alerts, "no alert" if watched else "unknown: no Prometheus of `loopline up` runs"),
    ]
    if status.problems:
        sections.append(("no answer", status.problems, ""))
    if status.steps:
        sections.append(("next", status.steps, ""))
    return "\n".join(
        f"{head}\n" + "\n".join(f"  {line}" for line in lines or (empty,)) for head, lines, empty in sections
    )


def _stage_line(stage: Stage) -> str:
    words = (f"{stage.stage} of {stage.model} for {stage.seconds:.0f} s", stage.progress, f"in {stage.folder}")
    return ", ".join(filter(None, words))


def _origin(served: Served) -> str:
    trained = f"; models/{served.model}/bundle is {served.trained}" if served.trained else ""
    if served.folder is None:
        return f"(its bundle is not here){trained}"
    return served.folder + (trained if served.trained != served.version else "")
