"""`loopline up` and `loopline down`: servers, sentinel, Prometheus and Alertmanager on the loopback, as plain processes.

What was started is noted in `.loopline/up/state.json`, and `down` ends exactly that: a process counts as ours if its number and
its start time are those noted.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from loopline.errors import LooplineError
from loopline.fleet import configuration, gateway, members, supervised
from loopline.fleet.configuration import StackOptions
from loopline.fleet.supervised import SupervisedProcess
from loopline.lib import locks, processes
from loopline.lib.processes import Process
from loopline.release import signature

FOLDER = Path(".loopline/up")
STORE = "prometheus"  # the folder that Prometheus records in
KEPT = (
    "Prometheus continues with the figures that it recorded before, also with those of models that are served no more"
)
HAPROXY_ADVICE = (
    "the gateway is HAProxy 2.6 or newer (apt-get install haproxy; brew install haproxy); or go without --gateway"
)
PROMETHEUS, ALERTMANAGER = ("prometheus",), ("prometheus-alertmanager", "alertmanager")  # Debian's name first
ADVICE = (
    "install it (Debian and Ubuntu: apt-get install prometheus prometheus-alertmanager; macOS: brew install prometheus "
    "alertmanager; others: https://prometheus.io/download) or put it on the PATH"
)


def binary(names: Sequence[str], advice: str = ADVICE) -> str:
    """The first of these programs on the PATH. Raises LooplineError with advice."""
    for name in names:
        if found := shutil.which(name):
            return found
    raise LooplineError(f"{names[-1]} was not found: {advice}")


def up(options: StackOptions, folder: Path = FOLDER) -> list[Process]:
    """Start everything and wait until it answers. Raises LooplineError, with nothing left running, if something does not."""
    if not options.bundles:
        raise LooplineError("no bundle under models/: run `make repro` first, or name some")
    programs = binary(PROMETHEUS), binary(ALERTMANAGER)
    haproxy = binary(["haproxy"], HAPROXY_ADVICE) if options.gateway else ""
    try:
        with locks.held(folder / "up.lock", wait=False):
            return _up(options, folder, haproxy, *programs)
    except BlockingIOError as error:
        raise LooplineError("another `loopline up` is at work here: wait for it") from error


def _up(options: StackOptions, folder: Path, haproxy: str, prometheus: str, alertmanager: str) -> list[Process]:
    if processes.running(folder):
        raise LooplineError("it is up already: `loopline down` ends it")
    _refuse_taken_ports(options)
    configuration.write(options, folder)
    (folder / "fleet.json").unlink(missing_ok=True)  # of the last time
    if not options.keep_metrics:
        _set_aside(folder / STORE)
    parts = [
        *_front(options, folder, haproxy),
        *_parts(options, folder, prometheus, alertmanager),
        supervised.supervisor(folder),
    ]
    supervised.note(parts, folder)
    started: list[Process] = []
    try:
        for part in parts:
            started.append(processes.start(part.name, part.command, part.address, folder, part.env))
            processes.save(started, folder)
            if part.ready:
                processes.wait(started[-1], part.ready, folder)
            if part.name == "gateway":
                _behind(options, folder)
                started = processes.running(folder)
    except BaseException:  # Ctrl-C too: nothing stays behind, and the error goes on
        down(folder)
        raise
    return started


def _refuse_taken_ports(options: StackOptions) -> None:
    """Whoever listens there would answer in place of what we start, and count as ours."""
    ports = {"--port": options.port, "--sentinel-port": options.sentinel_port}
    ports |= {"--prometheus-port": options.prometheus_port, "--alertmanager-port": options.alertmanager_port}
    ports |= {"--journal-port": options.journal_port} if options.journal else {}
    ports |= {"--retrainer-port": options.retrainer_port} if options.retrainer_port else {}
    metrics = range(options.port + 1, options.port + 1 + (1 if options.gateway else options.replicas))
    asked = {port: option for option, port in ports.items()}
    asked |= dict.fromkeys(metrics, "--port, and the next ones")
    if taken := processes.taken(asked):
        raise LooplineError(
            f"{', '.join(f'port {port} ({asked[port]})' for port in taken)}: another process listens there. End it, or give another "
            "port. Debian starts its own Prometheus: `sudo systemctl disable --now prometheus prometheus-alertmanager`"
        )


def _set_aside(store: Path) -> None:
    """Give Prometheus an empty store: figures of other servers would raise alerts of them. The last one stays beside it."""
    before = store.with_name(f"{store.name}.1")
    if store.exists():
        shutil.rmtree(before, ignore_errors=True)
        store.rename(before)


def _front(options: StackOptions, folder: Path, haproxy: str) -> list[SupervisedProcess]:
    """HAProxy, where it is wanted."""
    if not options.gateway:
        return []
    address, metrics = f"http://127.0.0.1:{options.port}", options.port + 1
    config = gateway.write(folder, port=options.port, metrics_port=metrics)
    return [
        SupervisedProcess(
            "gateway", [haproxy, "-db", "-f", str(config)], address, f"http://127.0.0.1:{metrics}/metrics"
        )
    ]


def _behind(options: StackOptions, folder: Path) -> None:
    """The champion's servers behind the gateway, and the sentinel that goes with them."""
    kept = [members.keep(path) for path in options.bundles]
    bundles = {name: str(found.folder) for name, found in kept}
    if len(bundles) < len(kept):
        raise LooplineError("two of the bundles are of one model: name one of each")
    wanted = members.Fleet(
        url=f"http://127.0.0.1:{options.port}",
        champion=members.Lane(bundles, options.replicas),
        prometheus=f"http://127.0.0.1:{options.prometheus_port}",
        arguments=_serving(options),
        sentinel=_sentinel(options),
    )
    members.apply(wanted, folder)


def _parts(options: StackOptions, folder: Path, prometheus: str, alertmanager: str) -> list[SupervisedProcess]:
    """What is started one after the other; behind a gateway servers and sentinel are the fleet's."""
    bundles = [str(path) for path in options.bundles]
    loopline, url = [sys.executable, "-m", "loopline.cli"], f"http://127.0.0.1:{options.port}"
    found = []
    if options.journal:
        address = f"http://127.0.0.1:{options.journal_port}"
        command = [*loopline, "journal", str(options.journal), "--port", str(options.journal_port)]
        every = ["--every", str(min(options.scrape, 2.0))]
        found.append(SupervisedProcess("journal", [*command, *every], address, f"{address}/metrics"))
    for number in range(0 if options.gateway else options.replicas):
        metrics = options.port + 1 + number
        command = [*loopline, "serve", *bundles, "--port", str(options.port), "--share-port"]
        command += ["--metrics-port", str(metrics)]
        ready = f"http://127.0.0.1:{metrics}/v2/health/ready"
        found.append(SupervisedProcess(f"server-{number + 1}", [*command, *_serving(options)], url, ready))
    if not options.gateway:
        address = f"http://127.0.0.1:{options.sentinel_port}/metrics"
        found.append(
            SupervisedProcess("sentinel", [*loopline, "sentinel", url, *bundles, *_sentinel(options)], address, address)
        )
    if options.retrainer_port:
        address = f"http://127.0.0.1:{options.retrainer_port}"
        command = [*loopline, "retrainer", "--port", str(options.retrainer_port), "--window", options.window]
        command += ["--prometheus", f"http://127.0.0.1:{options.prometheus_port}", "--policy", str(options.policy)]
        command += ["--journal", str(options.journal)] if options.journal else []
        token = {"LOOPLINE_RETRAINER_TOKEN_FILE": str((folder / configuration.TOKEN).resolve())}
        found.append(SupervisedProcess("retrainer", command, address, f"{address}/healthz", token))
    own = f"127.0.0.1:{options.alertmanager_port}"
    command = [alertmanager, f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/alertmanager"]
    command += [f"--web.listen-address={own}", "--cluster.listen-address="]
    found.append(SupervisedProcess("alertmanager", command, f"http://{own}", f"http://{own}/-/ready"))
    own = f"127.0.0.1:{options.prometheus_port}"
    command = [prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder / STORE}"]
    command += [f"--web.listen-address={own}"]
    found.append(SupervisedProcess("prometheus", command, f"http://{own}", f"http://{own}/-/ready"))
    return found


def _serving(options: StackOptions) -> tuple[str, ...]:
    """Further options of each server: also of those that a rollout starts later, from whatever shell."""
    key = os.environ.get(signature.VERIFY_KEY)
    verified = ("--verify-key", str(Path(key).absolute())) if key else ()
    if not options.journal:
        return verified
    seconds = min(options.scrape, 5.0)
    return (
        *verified,
        *("--journal", str(options.journal)),
        *("--journal-sample", str(options.journal_sample), "--journal-seconds", str(seconds)),
    )


def _sentinel(options: StackOptions) -> tuple[str, ...]:
    return "--every", str(options.sentinel), "--port", str(options.sentinel_port)


def down(folder: Path = FOLDER) -> list[Process]:
    """End what `up` started, and what a rollout put in its place; returns it."""
    found = processes.running(folder)
    # It would start the others anew
    processes.end([process for process in found if process.name == supervised.SUPERVISOR])
    found += [process for process in processes.running(folder) if process not in found]
    processes.end(found)
    processes.end(list(members.strays(folder).values()))  # what a rollout was about to note
    if (folder / "state.json").exists():
        processes.save([], folder)
    return found
