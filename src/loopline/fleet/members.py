"""The servers that should run behind the gateway, and the steps to that state from any other.

The target state is a file, `fleet.json`. `apply` starts the missing servers, lets the gateway change over, and ends the surplus
ones. It can be killed at any time and called again, because it looks at the processes that run and not at a plan.
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
# Variable in a server's environment that identifies it, in case its starter is killed before it notes the process.
MARK = "LOOPLINE_SERVER"
LOOPLINE = sys.executable, "-m", "loopline.cli"
LANES = CHAMPION, BASELINE, CHALLENGER


@dataclass(frozen=True)
class Lane:
    """bundles: model -> folder. replicas: number of servers; each serves all the bundles."""

    bundles: Mapping[str, str] = field(default_factory=dict)
    replicas: int = 0

    @property
    def digest(self) -> str:
        """A short hash of the bundles."""
        return hashlib.sha256(json.dumps(dict(self.bundles), sort_keys=True).encode()).hexdigest()[:8]

    def names(self, lane: str) -> list[str]:
        """Names of the lane's servers. Another set of bundles has other names."""
        return [f"{lane}-{self.digest}-{number + 1}" for number in range(self.replicas)]


@dataclass(frozen=True)
class Fleet:
    """The target state of all lanes.

    url: the gateway's address. arguments: further ones of each `loopline serve`. prometheus: its address. sentinel: arguments of
    the sentinel that checks the champion.
    """

    url: str
    champion: Lane
    baseline: Lane = Lane()
    challenger: Lane = Lane()
    arguments: tuple[str, ...] = ()
    prometheus: str = ""
    sentinel: tuple[str, ...] = ()

    def lanes(self) -> dict[str, Lane]:
        """Name -> lane."""
        return {CHAMPION: self.champion, BASELINE: self.baseline, CHALLENGER: self.challenger}

    def with_champion(self, model: str, folder: str) -> Fleet:
        """A copy with one model's bundle replaced and the lanes on trial empty. folder: of the new bundle."""
        lane = replace(self.champion, bundles={**self.champion.bundles, model: folder})
        return replace(self, champion=lane, baseline=Lane(), challenger=Lane())


def read(folder: Path = FOLDER) -> Fleet:
    """The target state. Raises LooplineError if no gateway was started."""
    try:
        content = json.loads((folder / "fleet.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LooplineError("no gateway is up: `loopline up --gateway` starts one") from error
    lanes = {name: Lane(**content.pop(name)) for name in LANES}
    content |= {name: tuple(content[name]) for name in ("arguments", "sentinel")} | lanes
    return Fleet(**content)


def keep(source: Path, store: Path = BUNDLES) -> tuple[str, bundle.Bundle]:
    """Copy a bundle, so that its source may go; return the model's name and the copy. Raises BundleError if it is damaged."""
    original = bundle.read(source)
    to = store / original.manifest.name / original.version
    if not to.exists():
        partial = to.with_name(f"{original.version}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        partial.rename(to)
    signature.carry(source, to)
    return original.manifest.name, bundle.read(to)


def apply(fleet: Fleet, folder: Path = FOLDER) -> list[Process]:
    """Save the target state, reach it, and return the servers.

    Raises LooplineError if a server does not start; the traffic then stays where it was.
    """
    with locks.held(folder / "lock"):
        return _apply(fleet, folder)


def mend(folder: Path = FOLDER) -> bool:
    """Restore the target state if the sentinel or a champion's server ended or is missing in the gateway; return whether it was
    so.

    A server on trial is not restarted, because the judge must see that it ended. Raises LooplineError as `apply` does.
    """
    if not (folder / "fleet.json").exists():
        return False
    with locks.held(folder / "lock"):
        fleet, addresses = read(folder), {process.name: process.address for process in processes.running(folder)}
        in_gateway = {f"127.0.0.1:{slot.port}" for slot in Gateway(folder).slots(CHAMPION)}
        names = fleet.champion.names(CHAMPION)
        complete = all(addresses.get(name, "").removeprefix("http://") in in_gateway for name in names)
        if complete and f"sentinel-{fleet.champion.digest}" in addresses:
            return False
        _apply(fleet, folder)
        return True


def _apply(fleet: Fleet, folder: Path) -> list[Process]:
    files.write(folder / "fleet.json", json.dumps(asdict(fleet)), shared=True)
    gateway = Gateway(folder)
    running = strays(folder) | {process.name: process for process in processes.running(folder)}
    servers = {}
    for lane_name, lane in fleet.lanes().items():
        for name in lane.names(lane_name):
            servers[name] = running.get(name) or _start(name, lane, fleet, folder)
            running[name] = servers[name]
            processes.save(list(running.values()), folder)
    for name, server in servers.items():
        running[name] = servers[name] = _ready(server, folder)
    processes.save(list(running.values()), folder)
    _targets(servers, folder)
    for lane_name in LANES:
        gateway.serve(lane_name, [port(server) for name, server in servers.items() if name.startswith(f"{lane_name}-")])
    sentinel = f"sentinel-{fleet.champion.digest}"
    prefixes = (*(f"{lane_name}-" for lane_name in LANES), "sentinel-")
    kept = {*servers, sentinel}
    surplus = [process for name, process in running.items() if name.startswith(prefixes) and name not in kept]
    processes.end(surplus)
    left = [process for process in running.values() if process not in surplus]
    if sentinel not in running:
        command = [*LOOPLINE, "sentinel", fleet.url, *fleet.champion.bundles.values(), *fleet.sentinel]
        left.append(processes.start(sentinel, command, "", folder, {MARK: f"{folder.absolute()}:{sentinel}"}))
    processes.save(left, folder)
    return list(servers.values())


def port(server: Process) -> int:
    """The port that a server listens on, for requests and for metrics."""
    return int(server.address.rpartition(":")[2])


def servers(lane: str, folder: Path = FOLDER) -> list[Process]:
    """The servers of a lane that run."""
    return [process for process in processes.running(folder) if process.name.startswith(f"{lane}-")]


def _start(name: str, lane: Lane, fleet: Fleet, folder: Path) -> Process:
    # Port 0 is any free port: a port chosen here could be taken meanwhile, and two servers could even share it.
    command = [*LOOPLINE, "serve", *lane.bundles.values(), "--port", "0", *fleet.arguments]
    return processes.start(name, command, "", folder, {MARK: f"{folder.absolute()}:{name}"})


def _ready(server: Process, folder: Path) -> Process:
    """Wait for the server's log line `ready`, and return the server with its address. Raises LooplineError if none comes."""
    if server.address:
        return server
    log = folder / f"{server.name}.log"
    until(lambda: _address(log) or not processes.alive(server), processes.READY_SECONDS)
    if address := _address(log):
        return replace(server, address=address)
    processes.end([server])
    raise processes.not_ready(server.name, folder)


def _address(log: Path) -> str:
    """The address in a server's log line `ready`; empty before that line."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("{") and line.endswith("}") and (row := json.loads(line))["message"] == "ready":
            return str(row["address"])
    return ""


def strays(folder: Path = FOLDER) -> dict[str, Process]:
    """Name -> process of all that carry this folder's mark, including servers whose starter was killed before it noted them."""
    import psutil

    marked = {}
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK, "")
            if mark.startswith(f"{folder.absolute()}:"):
                name = mark.rpartition(":")[2]
                marked[name] = Process(name, process.pid, process.create_time(), "")
        except psutil.Error:  # it ended, or it is another user's
            continue
    return marked


def _targets(servers: Mapping[str, Process], folder: Path) -> None:
    """Write the list of servers that Prometheus scrapes. Prometheus notices that the file changes."""
    (folder / "targets").mkdir(exist_ok=True)
    rows = [
        {"targets": [f"127.0.0.1:{port(server)}"], "labels": {"lane": name.partition("-")[0]}}
        for name, server in servers.items()
    ]
    files.write(folder / "targets/servers.json", json.dumps(rows), shared=True)
