"""`loopline up` and `loopline down`: servers, sentinel, Prometheus and Alertmanager on the loopback, as plain processes.

What was started is noted in `.loopline/up/state.json`, and `down` ends exactly that: a process counts as ours if its number and
its start time are those noted.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loopline.errors import LooplineError
from loopline.monitoring import rules

FOLDER = Path(".loopline/up")
CONFIGURATION = Path(__file__).parents[3] / "monitoring"  # the repository's
TOKEN = "retrainer.token"  # noqa: S105 - the name of a file
FAST = 5.0  # seconds between scrapes: who looks more often wants to be told at once
READY_SECONDS = 30.0
END_SECONDS = 40.0  # a server drains for 30
PROMETHEUS, ALERTMANAGER = ("prometheus",), ("prometheus-alertmanager", "alertmanager")  # Debian's name first
ADVICE = (
    "install it (Debian and Ubuntu: apt-get install prometheus prometheus-alertmanager; macOS: brew install prometheus "
    "alertmanager; others: https://prometheus.io/download) or put it on the PATH"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """See `loopline up --help`. window: of drift; what is evaluated follows it. scrape: seconds."""

    bundles: tuple[Path, ...]
    replicas: int = 1
    window: str = rules.WINDOW
    scrape: float = 15.0
    sentinel: float = 60.0
    port: int = 8080
    prometheus_port: int = 9090
    alertmanager_port: int = 9093
    sentinel_port: int = 9101
    webhook: str | None = None
    retrainer_port: int | None = None
    policy: Path = Path("monitoring/retraining.yaml")


@dataclass(frozen=True)
class Process:
    """One that we started. created: its start time as the system has it."""

    name: str
    pid: int
    created: float
    address: str


def binary(names: Sequence[str]) -> str:
    """The first of these programs on the PATH. Raises LooplineError with advice."""
    for name in names:
        if found := shutil.which(name):
            return found
    raise LooplineError(f"{names[-1]} was not found: {ADVICE}")


def up(options: Options, folder: Path = FOLDER) -> list[Process]:
    """Start everything and wait until it answers. Raises LooplineError, with nothing left running, if something does not."""
    if running(folder):
        raise LooplineError("it is up already: `loopline down` ends it")
    if not options.bundles:
        raise LooplineError("no bundle under models/: run `make repro` first, or name some")
    programs = binary(PROMETHEUS), binary(ALERTMANAGER)
    folder.mkdir(parents=True, exist_ok=True)
    write(options, folder)
    started: list[Process] = []
    try:
        for name, command, address, ready in _commands(options, folder, *programs):
            started.append(_start(name, command, address, folder))
            _save(started, folder)
            _wait(started[-1], ready, folder)
    except BaseException:  # Ctrl-C too: nothing stays behind, and the error goes on
        end(started)
        _save([], folder)
        raise
    return started


def write(options: Options, folder: Path) -> None:
    """The repository's configuration of Prometheus and Alertmanager, with these ports, this window and this pace."""
    import yaml

    (folder / "rules.yml").write_text(rules.text(options.window), encoding="utf-8")
    scrape = f"{options.scrape * 1000:.0f}ms"
    prometheus = yaml.safe_load((CONFIGURATION / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
    prometheus["global"] = {"scrape_interval": scrape, "scrape_timeout": scrape, "evaluation_interval": scrape}
    manager = {"static_configs": [{"targets": [f"127.0.0.1:{options.alertmanager_port}"]}]}
    servers = [f"127.0.0.1:{options.port + 1 + number}" for number in range(options.replicas)]
    targets = {"loopline": servers, "sentinel": [f"127.0.0.1:{options.sentinel_port}"]}
    if options.retrainer_port:
        targets["retrainer"] = [f"127.0.0.1:{options.retrainer_port}"]
    prometheus["alerting"] = {"alertmanagers": [manager]}
    prometheus["scrape_configs"] = [
        {"job_name": job["job_name"], "static_configs": [{"targets": targets[job["job_name"]]}]}
        for job in prometheus["scrape_configs"]
        if job["job_name"] in targets
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(prometheus, sort_keys=False), encoding="utf-8")

    alertmanager = yaml.safe_load((CONFIGURATION / "alertmanager/alertmanager.yml").read_text(encoding="utf-8"))
    if options.scrape < FAST:
        alertmanager["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    receivers = {receiver["name"]: receiver for receiver in alertmanager["receivers"]}
    if options.retrainer_port:
        _tell_retrainer(receivers["retrainer"], options.retrainer_port, folder)
    else:
        alertmanager["receivers"].remove(receivers["retrainer"])
        routes = alertmanager["route"]["routes"]
        alertmanager["route"]["routes"] = [route for route in routes if route["receiver"] != "retrainer"]
    if options.webhook:
        receivers["team"]["webhook_configs"] = [{"url": options.webhook, "send_resolved": True}]
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(alertmanager, sort_keys=False), encoding="utf-8")


def _tell_retrainer(receiver: dict[str, Any], port: int, folder: Path) -> None:
    """Alertmanager and the retrainer share a token of this start; only we can read its file."""
    token = folder / TOKEN
    token.unlink(missing_ok=True)
    with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    (hook,) = receiver["webhook_configs"]
    hook["url"] = f"http://127.0.0.1:{port}/alertmanager"
    hook["http_config"]["authorization"]["credentials_file"] = str(token.resolve())


def _commands(
    options: Options, folder: Path, prometheus: str, alertmanager: str
) -> list[tuple[str, list[str], str, str]]:
    """Name, command, address, and the address that answers when it is ready."""
    bundles = [str(path) for path in options.bundles]
    loopline = [sys.executable, "-m", "loopline.cli"]
    url = f"http://127.0.0.1:{options.port}"
    found = []
    for number in range(options.replicas):
        metrics = options.port + 1 + number
        command = [*loopline, "serve", *bundles, "--port", str(options.port), "--metrics-port", str(metrics)]
        name = f"server-{number + 1}"
        found.append((name, command, url, f"http://127.0.0.1:{metrics}/v2/health/ready"))
    watch = ["--every", str(options.sentinel), "--port", str(options.sentinel_port)]
    address = f"http://127.0.0.1:{options.sentinel_port}/metrics"
    found.append(("sentinel", [*loopline, "sentinel", url, *bundles, *watch], address, address))
    if port := options.retrainer_port:
        address = f"http://127.0.0.1:{port}"
        token = f"LOOPLINE_RETRAINER_TOKEN_FILE={(folder / TOKEN).resolve()}"
        command = ["/usr/bin/env", token, *loopline, "retrainer", "--port", str(port), "--window", options.window]
        command += ["--prometheus", f"http://127.0.0.1:{options.prometheus_port}", "--policy", str(options.policy)]
        found.append(("retrainer", command, address, f"{address}/healthz"))
    own = f"127.0.0.1:{options.alertmanager_port}"
    command = [alertmanager, f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/alertmanager"]
    command += [f"--web.listen-address={own}", "--cluster.listen-address="]
    found.append(("alertmanager", command, f"http://{own}", f"http://{own}/-/ready"))
    own = f"127.0.0.1:{options.prometheus_port}"
    command = [prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/prometheus"]
    command += [f"--web.listen-address={own}"]
    found.append(("prometheus", command, f"http://{own}", f"http://{own}/-/ready"))
    return found


def _start(name: str, command: list[str], address: str, folder: Path) -> Process:
    import psutil

    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    return Process(name, process.pid, psutil.Process(process.pid).create_time(), address)


def _wait(process: Process, ready: str, folder: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        if not alive(process):
            break
        try:
            with urllib.request.urlopen(ready, timeout=1):  # noqa: S310 - our own address
                return
        except OSError:
            time.sleep(0.05)
    tail = (folder / f"{process.name}.log").read_text(encoding="utf-8", errors="replace")[-800:]
    raise LooplineError(f"{process.name} did not get ready; the end of {folder}/{process.name}.log:\n{tail}")


def alive(process: Process) -> bool:
    """It runs, and is the one that we started."""
    import psutil

    try:
        found = psutil.Process(process.pid)
        return bool(found.create_time() == process.created and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def running(folder: Path = FOLDER) -> list[Process]:
    """What `up` started and still runs."""
    try:
        rows = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [process for process in (Process(**row) for row in rows) if alive(process)]


def _save(processes: Sequence[Process], folder: Path) -> None:
    partial = folder / "state.json.partial"
    partial.write_text(json.dumps([asdict(process) for process in processes]), encoding="utf-8")
    partial.replace(folder / "state.json")


def end(processes: Sequence[Process]) -> None:
    """Ask each to end, the last started first; what has not after a while is killed."""
    import psutil

    found = []
    for process in reversed(processes):
        if alive(process):
            os.kill(process.pid, 15)
            found.append(psutil.Process(process.pid))
    _, left = psutil.wait_procs(found, timeout=END_SECONDS)
    for one in left:
        one.kill()


def down(folder: Path = FOLDER) -> list[Process]:
    """End what `up` started; returns it."""
    processes = running(folder)
    end(processes)
    if (folder / "state.json").exists():
        _save([], folder)
    return processes
