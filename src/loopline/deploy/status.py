"""`loopline status`: what is up, what it serves, what trains, what was decided last and which alerts fire, in one look."""

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
from loopline.retraining.state import WAITING, RetrainerStore
from loopline.rollout import state

SERVER = "http://127.0.0.1:8080"  # of `make serve`, where `up` started nothing
PROGRESS = Path(".loopline/progress")  # a file for each model that trains
DECISIONS = 3  # the latest ones that are shown


@dataclass(frozen=True)
class PartStatus:
    """A process that `up` started. running: False where it ended and is missed."""

    name: str
    address: str
    pid: int | None
    running: bool


@dataclass(frozen=True)
class Served:
    """A model that is served. folder: of a bundle here that has this version, or None. trained: version in models/NAME/bundle."""

    model: str
    version: str
    folder: str | None
    trained: str | None


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline that runs here. seconds: since its start. progress: `epoch 3 of 10`, or empty."""

    stage: str
    model: str
    seconds: float
    folder: str
    progress: str


@dataclass(frozen=True)
class FiringAlert:
    """An alert that fires. model: empty for one of a server."""

    name: str
    severity: str
    model: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Status:
    """All of it. problems: what was asked and gave no answer. steps: commands that lead on."""

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
    """Look at this repository and at what runs on this machine. url: of a server (default: what `up` started, else port 8080)."""
    parts, problems = _parts(), []
    running = {part.name: part.address for part in parts if part.running}
    named = url or running.get("gateway") or running.get("server-1")
    served: list[Served] = []
    try:
        served = [_served(*row) for row in prometheus_api.served(named or SERVER, token).items()]
        named = named or SERVER
    except LooplineError as error:
        problems += [str(error)] if named else []
    alerts: list[FiringAlert] = []
    if "prometheus" in running:
        try:
            alerts = _alerts(running["prometheus"])
        except LooplineError as error:
            problems.append(str(error))
    rollout, log = state.read(), decisions.path()
    return Status(
        parts=parts,
        url=named,
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
    found = [PartStatus(one.name, one.address, one.pid, True) for one in running]
    names = {one.name for one in running}
    noted = folder / "parts.json"
    if not running or not noted.exists():
        return found
    rows = json.loads(noted.read_text(encoding="utf-8"))
    return found + [PartStatus(row["name"], row["address"], None, False) for row in rows if row["name"] not in names]


def _served(model: str, version: str) -> Served:
    """With where that bundle is on this machine."""
    newest = Path("models") / model / "bundle"
    trained = None
    if (newest / bundle.SUMS).exists():
        try:
            trained = bundle.read(newest).version[: len(version)]
        except LooplineError:  # a pipeline writes it right now, or it is damaged: `loopline verify` says which
            trained = None
    folders = [newest] if trained == version else sorted((members.BUNDLES / model).glob(f"{glob.escape(version)}*"))
    return Served(model, version, str(folders[0]) if folders and version else None, trained)


def _stages(root: Path) -> Iterator[Stage]:
    """Of this repository and of its worktrees and clones inside: `loopline stage NAME MODEL` as dvc.yaml calls it."""
    import psutil

    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            places = [i for i, word in enumerate(words[:-2]) if word == "stage"]
            if not places or not any(Path(word).name in ("loopline", "loopline.cli") for word in words[: places[0]]):
                continue
            folder = Path(process.cwd())
            if folder == root or root in folder.parents:
                stage, model = words[places[0] + 1 : places[0] + 3]
                seconds = time.time() - process.create_time()
                yield Stage(stage, model, seconds, str(folder.relative_to(root)), _progress(folder, stage, model))
        except psutil.Error:  # it ended, or it is another user's
            continue


def _progress(folder: Path, stage: str, model: str) -> str:
    """As `training.progress` leaves it there."""
    try:
        return (folder / PROGRESS / model).read_text(encoding="utf-8") if stage == "train" else ""
    except FileNotFoundError:
        return ""


def _retraining(folder: Path) -> Iterator[str]:
    """Lines on a pause, on alerts that wait, on the run under way and on the last one that ended."""
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
    found = {
        FiringAlert(*(row.get(name, "") for name in ("alertname", "severity", "model", "version"))) for row in rows
    }
    return sorted(found, key=lambda alert: (alert.model, alert.name))


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _steps(*, up: bool, answers: bool) -> list[str]:
    """What to run next."""
    if answers:
        return [] if up else ["make up starts servers with monitoring"]
    if up:
        return ["make down, then make up: nothing answers; logs are in .loopline/up"]
    if not any(Path("models").glob("*/bundle")):
        return ["make repro makes the bundles that can be served"]
    return ["make serve starts a server, make up one with monitoring, make deploy one behind a gateway"]


def as_json(status: Status) -> str:
    """The status as one JSON object, with the names of `Status`."""
    return json.dumps(asdict(status), indent=1)


def as_text(status: Status) -> str:
    """The status for people: a heading and its lines, each part with what it means that there is nothing."""
    parts = [
        f"{part.name:22} {part.address or '-':28} {f'process {part.pid}' if part.running else 'ENDED'}"
        for part in status.parts
    ]
    served = [f"{one.model} {one.version}  {_origin(one)}" for one in status.served]
    stages = [
        ", ".join(
            filter(None, (f"{one.stage} of {one.model} for {one.seconds:.0f} s", one.progress, f"in {one.folder}"))
        )
        for one in status.stages
    ]
    alerts = [f"{one.name} ({one.severity}) {one.model} {one.version}".rstrip() for one in status.alerts]
    watched = any(part.name == "prometheus" and part.running for part in status.parts)
    sections: list[tuple[str, Sequence[str], str]] = [
        ("up", parts, "nothing that `loopline up` or `loopline deploy` started"),
        (f"serves{f' at {status.url}' if status.url else ''}", served, f"no server answers at {status.url or SERVER}"),
        ("runs", stages, "no stage of the pipeline"),
        ("retraining", status.retraining, "no alert, no run"),
        ("rollout", status.rollout.splitlines() if status.rollout else (), "none yet"),
        ("decided last", [line for one in status.decided for line in str(one).splitlines()], "nothing yet"),
        ("fires", alerts, "no alert" if watched else "unknown: no Prometheus of `loopline up` runs"),
    ]
    if status.problems:
        sections.append(("no answer", status.problems, ""))
    if status.steps:
        sections.append(("next", status.steps, ""))
    return "\n".join(
        f"{head}\n" + "\n".join(f"  {line}" for line in lines or (empty,)) for head, lines, empty in sections
    )


def _origin(one: Served) -> str:
    if one.folder is None:
        return "(its bundle is not here)" + (f"; models/{one.model}/bundle is {one.trained}" if one.trained else "")
    newer = one.trained and one.trained != one.version
    return one.folder + (f"; models/{one.model}/bundle is {one.trained}" if newer else "")
