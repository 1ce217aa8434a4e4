"""Which servers there should be behind the gateway, and the way there from whatever there is.

What is wanted is a file, `fleet.json`; `apply` starts what is missing, lets the gateway change over, and ends what is too much. It can
be killed at any time and called again: it looks at what runs, not at what it was about to do.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from loopline.errors import LooplineError
from loopline.fleet.gateway import BASELINE, CHALLENGER, CHAMPION, Gateway
from loopline.lib import files, locks, processes
from loopline.lib.processes import Process
from loopline.lib.waiting import until
from loopline.release import bundle, signature

FOLDER = Path(".loopline/up")
BUNDLES = Path(".loopline/bundles")
MARK = "LOOPLINE_SERVER"  # in a server's environment: whose it is, should we be killed before its number is noted
LOOPLINE = sys.executable, "-m", "loopline.cli"
LANES = CHAMPION, BASELINE, CHALLENGER


@dataclass(frozen=True)
class Lane:
    """bundles: model -> folder. replicas: servers, each with all of them."""

    bundles: Mapping[str, str] = field(default_factory=dict)
    replicas: int = 0

    @property
    def digest(self) -> str:
        """Of the bundles, short."""
        return hashlib.sha256(json.dumps(dict(self.bundles), sort_keys=True).encode()).hexdigest()[:8]

    def names(self, lane: str) -> list[str]:
        """Its servers' names: another set of bundles has other names."""
        return [f"{lane}-{self.digest}-{number + 1}" for number in range(self.replicas)]


@dataclass(frozen=True)
class Fleet:
    """What is wanted.

    url: the gateway's. arguments: further ones of each `loopline serve`; sentinel: of the one that asks the champion. prometheus:
    its address.
    """

    url: str
    champion: Lane
    baseline: Lane = Lane()
    challenger: Lane = Lane()
    arguments: tuple[str, ...] = ()
    prometheus: str = ""
    sentinel: tuple[str, ...] = ()

    def lanes(self) -> dict[str, Lane]:
        """By name."""
        return {CHAMPION: self.champion, BASELINE: self.baseline, CHALLENGER: self.challenger}

    def with_champion(self, model: str, folder: str) -> Fleet:
        """One model's bundle replaced, the lanes on trial empty."""
        lane = replace(self.champion, bundles={**self.champion.bundles, model: folder})
        return replace(self, champion=lane, baseline=Lane(), challenger=Lane())


def read(folder: Path = FOLDER) -> Fleet:
    """What is wanted. Raises LooplineError where no gateway was started."""
    try:
        content = json.loads((folder / "fleet.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LooplineError("no gateway is up: `loopline up --gateway` starts one") from error
    lanes = {name: Lane(**content.pop(name)) for name in LANES}
    content |= {name: tuple(content[name]) for name in ("arguments", "sentinel")} | lanes
    return Fleet(**content)


def keep(source: Path, store: Path = BUNDLES) -> tuple[str, bundle.Bundle]:
    """A copy of a bundle that stays when its source goes: the model's name, and the copy. Raises BundleError on a damaged one."""
    found = bundle.read(source)
    to = store / found.manifest.name / found.version
    if not to.exists():
        partial = to.with_name(f"{found.version}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        partial.rename(to)
    signature.carry(source, to)
    return found.manifest.name, bundle.read(to)


def apply(fleet: Fleet, folder: Path = FOLDER) -> list[Process]:
    """Want this, and make it so; returns the servers. Raises LooplineError if one does not start: traffic goes where it went."""
    with locks.held(folder / "lock"):
        return _apply(fleet, folder)


def mend(folder: Path = FOLDER) -> bool:
    """Make so what is wanted if a champion's server or the sentinel ended, or the gateway forgot them; was anything to do?

    A server on trial is not brought back: that it ended is what the judge is to see. Raises LooplineError as `apply` does.
    """
    if not (folder / "fleet.json").exists():
        return False
    with locks.held(folder / "lock"):
        fleet, there = read(folder), {process.name: process.address for process in processes.running(folder)}
        known = {f"127.0.0.1:{slot.port}" for slot in Gateway(folder).slots(CHAMPION)}
        names = fleet.champion.names(CHAMPION)
        whole = all(there.get(name, "").removeprefix("http://") in known for name in names)
        if whole and f"sentinel-{fleet.champion.digest}" in there:
            return False
        _apply(fleet, folder)
        return True


def _apply(fleet: Fleet, folder: Path) -> list[Process]:
    files.write(folder / "fleet.json", json.dumps(asdict(fleet)), shared=True)
    gateway = Gateway(folder)
    there = strays(folder) | {process.name: process for process in processes.running(folder)}
    servers = {}
    for lane, wanted in fleet.lanes().items():
        for name in wanted.names(lane):
            servers[name] = there.get(name) or _start(name, wanted, fleet, folder)
            there[name] = servers[name]
            processes.save(list(there.values()), folder)
    for name, server in servers.items():
        there[name] = servers[name] = _ready(server, folder)
    processes.save(list(there.values()), folder)
    _targets(servers, folder)
    for lane in LANES:
        gateway.serve(lane, [port(server) for name, server in servers.items() if name.startswith(f"{lane}-")])
    sentinel = f"sentinel-{fleet.champion.digest}"
    ours = (*(f"{lane}-" for lane in LANES), "sentinel-")
    surplus = [p for name, p in there.items() if name.startswith(ours) and name not in {*servers, sentinel}]
    processes.end(surplus)
    left = [process for process in there.values() if process not in surplus]
    if sentinel not in there:
        command = [*LOOPLINE, "sentinel", fleet.url, *fleet.champion.bundles.values(), *fleet.sentinel]
        left.append(processes.start(sentinel, command, "", folder, {MARK: f"{folder.absolute()}:{sentinel}"}))
    processes.save(left, folder)
    return list(servers.values())


def port(server: Process) -> int:
    """That it listens on, metrics and all."""
    return int(server.address.rpartition(":")[2])


def servers(lane: str, folder: Path = FOLDER) -> list[Process]:
    """Those of a lane that run."""
    return [process for process in processes.running(folder) if process.name.startswith(f"{lane}-")]


def _start(name: str, lane: Lane, fleet: Fleet, folder: Path) -> Process:
    # Any free port: one that was looked for beforehand may be gone, and servers of ours would even share it.
    command = [*LOOPLINE, "serve", *lane.bundles.values(), "--port", "0", *fleet.arguments]
    return processes.start(name, command, "", folder, {MARK: f"{folder.absolute()}:{name}"})


def _ready(server: Process, folder: Path) -> Process:
    """With its address, once its log says it is ready."""
    if server.address:
        return server
    log = folder / f"{server.name}.log"
    until(lambda: _address(log) or not processes.alive(server), processes.READY_SECONDS)
    if address := _address(log):
        return replace(server, address=address)
    processes.end([server])
    raise processes.not_ready(server.name, folder)


def _address(log: Path) -> str:
    """Where a server listens, as its log says when it is ready; empty before."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("{") and line.endswith("}") and (row := json.loads(line))["message"] == "ready":
            return str(row["address"])
    return ""


def strays(folder: Path = FOLDER) -> dict[str, Process]:
    """What carries our mark: also a server whose starter was killed before noting it."""
    import psutil

    found = {}
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK, "")
            if mark.startswith(f"{folder.absolute()}:"):
                name = mark.rpartition(":")[2]
                found[name] = Process(name, process.pid, process.create_time(), "")
        except psutil.Error:  # ended, or somebody else's
            continue
    return found


def _targets(servers: Mapping[str, Process], folder: Path) -> None:
    """What Prometheus scrapes: it sees the file change."""
    (folder / "targets").mkdir(exist_ok=True)
    rows = [
        {"targets": [f"127.0.0.1:{port(server)}"], "labels": {"lane": name.partition("-")[0]}}
        for name, server in servers.items()
    ]
    files.write(folder / "targets/servers.json", json.dumps(rows), shared=True)
