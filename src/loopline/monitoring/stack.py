"""`loopline up` and `loopline down`: servers, sentinel, Prometheus and Alertmanager on the loopback, as plain processes.

What was started is noted in `.loopline/up/state.json`, and `down` ends exactly that: a process counts as ours if its number and
its start time are those noted.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loopline import processes
from loopline.delivery import fleet, gateway
from loopline.errors import LooplineError
from loopline.monitoring import rules
from loopline.processes import Process

FOLDER = Path(".loopline/up")
CONFIGURATION = Path(__file__).parents[3] / "monitoring"  # the repository's
FAST = 5.0  # seconds between scrapes: who looks more often wants to be told at once
HAPROXY_ADVICE = (
    "the gateway is HAProxy 2.6 or newer (apt-get install haproxy; brew install haproxy); or go without --gateway"
)
PROMETHEUS, ALERTMANAGER = ("prometheus",), ("prometheus-alertmanager", "alertmanager")  # Debian's name first
ADVICE = (
    "install it (Debian and Ubuntu: apt-get install prometheus prometheus-alertmanager; macOS: brew install prometheus "
    "alertmanager; others: https://prometheus.io/download) or put it on the PATH"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """See `loopline up --help`. window: of drift; what is evaluated follows it. scrape: seconds.

    gateway: HAProxy has `port`, its metrics the next one, and each server a free one.
    """

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
    gateway: bool = False


def binary(names: Sequence[str], advice: str = ADVICE) -> str:
    """The first of these programs on the PATH. Raises LooplineError with advice."""
    for name in names:
        if found := shutil.which(name):
            return found
    raise LooplineError(f"{names[-1]} was not found: {advice}")


def up(options: Options, folder: Path = FOLDER) -> list[Process]:
    """Start everything and wait until it answers. Raises LooplineError, with nothing left running, if something does not."""
    if processes.running(folder):
        raise LooplineError("it is up already: `loopline down` ends it")
    if not options.bundles:
        raise LooplineError("no bundle under models/: run `make repro` first, or name some")
    programs = binary(PROMETHEUS), binary(ALERTMANAGER)
    haproxy = binary(["haproxy"], HAPROXY_ADVICE) if options.gateway else ""
    folder.mkdir(parents=True, exist_ok=True)
    write(options, folder)
    started: list[Process] = []
    try:
        if options.gateway:
            _gateway(options, folder, haproxy)
            started = processes.running(folder)
        for name, command, address, ready in _commands(options, folder, *programs):
            started.append(processes.start(name, command, address, folder))
            processes.save(started, folder)
            processes.wait(started[-1], ready, folder)
    except BaseException:  # Ctrl-C too: nothing stays behind, and the error goes on
        down(folder)
        raise
    return started


def _gateway(options: Options, folder: Path, haproxy: str) -> None:
    """HAProxy, the champion's servers behind it, and the sentinel that goes with them."""
    address, metrics = f"http://127.0.0.1:{options.port}", options.port + 1
    config = gateway.write(folder, port=options.port, metrics_port=metrics)
    process = processes.start("gateway", [haproxy, "-db", "-f", str(config)], address, folder)
    processes.save([process], folder)
    processes.wait(process, f"http://127.0.0.1:{metrics}/metrics", folder)
    kept = [fleet.keep(path) for path in options.bundles]
    bundles = {name: str(found.folder) for name, found in kept}
    if len(bundles) < len(kept):
        raise LooplineError("two of the bundles are of one model: name one of each")
    wanted = fleet.Fleet(
        url=address,
        champion=fleet.Lane(bundles, options.replicas),
        prometheus=f"http://127.0.0.1:{options.prometheus_port}",
        sentinel=("--every", str(options.sentinel), "--port", str(options.sentinel_port)),
    )
    fleet.apply(wanted, folder)


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
    prometheus["alerting"] = {"alertmanagers": [manager]}
    prometheus["scrape_configs"] = [
        {"job_name": job["job_name"], "static_configs": [{"targets": targets[job["job_name"]]}]}
        for job in prometheus["scrape_configs"]
    ]
    if options.gateway:  # which servers there are changes while it runs
        files = [str(folder.absolute() / "targets/*.json")]
        prometheus["scrape_configs"][0] = {
            "job_name": "loopline",
            "file_sd_configs": [{"files": files, "refresh_interval": "5s"}],
        }
        own = [{"targets": [f"127.0.0.1:{options.port + 1}"]}]
        prometheus["scrape_configs"].append({"job_name": "gateway", "static_configs": own})
    (folder / "prometheus.yml").write_text(yaml.safe_dump(prometheus, sort_keys=False), encoding="utf-8")

    alertmanager = yaml.safe_load((CONFIGURATION / "alertmanager/alertmanager.yml").read_text(encoding="utf-8"))
    if options.scrape < FAST:
        alertmanager["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    if options.webhook:
        alertmanager["receivers"][0]["webhook_configs"] = [{"url": options.webhook, "send_resolved": True}]
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(alertmanager, sort_keys=False), encoding="utf-8")


def _commands(
    options: Options, folder: Path, prometheus: str, alertmanager: str
) -> list[tuple[str, list[str], str, str]]:
    """Name, command, address, and the address that answers when it is ready."""
    bundles = [str(path) for path in options.bundles]
    loopline = [sys.executable, "-m", "loopline.cli"]
    url = f"http://127.0.0.1:{options.port}"
    found = []
    for number in range(0 if options.gateway else options.replicas):
        metrics = options.port + 1 + number
        command = [*loopline, "serve", *bundles, "--port", str(options.port), "--metrics-port", str(metrics)]
        name = f"server-{number + 1}"
        found.append((name, command, url, f"http://127.0.0.1:{metrics}/v2/health/ready"))
    watch = ["--every", str(options.sentinel), "--port", str(options.sentinel_port)]
    address = f"http://127.0.0.1:{options.sentinel_port}/metrics"
    if not options.gateway:
        found.append(("sentinel", [*loopline, "sentinel", url, *bundles, *watch], address, address))
    own = f"127.0.0.1:{options.alertmanager_port}"
    command = [alertmanager, f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/alertmanager"]
    command += [f"--web.listen-address={own}", "--cluster.listen-address="]
    found.append(("alertmanager", command, f"http://{own}", f"http://{own}/-/ready"))
    own = f"127.0.0.1:{options.prometheus_port}"
    command = [prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/prometheus"]
    command += [f"--web.listen-address={own}"]
    found.append(("prometheus", command, f"http://{own}", f"http://{own}/-/ready"))
    return found


def down(folder: Path = FOLDER) -> list[Process]:
    """End what `up` started, and what a rollout put in its place; returns it."""
    found = processes.running(folder)
    processes.end(found)
    processes.end(list(fleet.strays(folder).values()))  # what a rollout was about to note
    if (folder / "state.json").exists():
        processes.save([], folder)
    return found
