"""`loopline up` and `loopline down`: servers, sentinel, Prometheus and Alertmanager on the loopback, as plain processes.

`up` notes each process in `.loopline/up/state.json`, and `down` ends exactly these. A process is recognised by its number and its
start time.
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
STORE = "prometheus"  # the folder of Prometheus' data
KEPT = "Prometheus keeps the figures that it recorded before, including those of models that are no longer served"
HAPROXY_ADVICE = (
    "the gateway needs HAProxy 2.6 or newer (apt-get install haproxy; brew install haproxy); or leave out --gateway"
)
PROMETHEUS, ALERTMANAGER = ("prometheus",), ("prometheus-alertmanager", "alertmanager")  # Debian's name first
ADVICE = (
    "install it (Debian and Ubuntu: apt-get install prometheus prometheus-alertmanager; macOS: brew install prometheus "
    "alertmanager; others: https://prometheus.io/download) or put it on the PATH"
)


def binary(names: Sequence[str], advice: str = ADVICE) -> str:
    """The path of the first of these programs that is on the PATH. Raises LooplineError with advice if none is."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise LooplineError(f"{names[-1]} was not found: {advice}")


def up(options: StackOptions, folder: Path = FOLDER) -> list[Process]:
    """Start all processes, wait until they answer, and return them. If one does not, end all and raise LooplineError."""
    if not options.bundles:
        raise LooplineError("no bundle under models/: run `make repro` first, or name bundles")
    programs = binary(PROMETHEUS), binary(ALERTMANAGER)
    haproxy = binary(["haproxy"], HAPROXY_ADVICE) if options.gateway else ""
    try:
        with locks.held(folder / "up.lock", wait=False):
            return _up(options, folder, haproxy, *programs)
    except BlockingIOError as error:
        raise LooplineError("another `loopline up` is running here: wait for it") from error


def _up(options: StackOptions, folder: Path, haproxy: str, prometheus: str, alertmanager: str) -> list[Process]:
    if processes.running(folder):
        raise LooplineError("the stack is already up: `loopline down` ends it")
    _refuse_taken_ports(options)
    configuration.write(options, folder)
    (folder / "fleet.json").unlink(missing_ok=True)  # the last start's
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
    except BaseException:  # Ctrl-C too: end all processes, then pass the error on
        down(folder)
        raise
    return started


def _refuse_taken_ports(options: StackOptions) -> None:
    """Raise LooplineError if a port is taken: its process would answer in place of the one to start, and seem to be it."""
    ports = {"--port": options.port, "--sentinel-port": options.sentinel_port}
    ports |= {"--prometheus-port": options.prometheus_port, "--alertmanager-port": options.alertmanager_port}
    ports |= {"--journal-port": options.journal_port} if options.journal else {}
    ports |= {"--retrainer-port": options.retrainer_port} if options.retrainer_port else {}
    metrics = range(options.port + 1, options.port + 1 + (1 if options.gateway else options.replicas))
    options_of = {port: option for option, port in ports.items()}
    options_of |= dict.fromkeys(metrics, "--port, and the next ones")
    if taken := processes.taken(options_of):
        named = ", ".join(f"port {port} ({options_of[port]})" for port in taken)
        raise LooplineError(
            f"{named}: another process listens there. End it, or choose another port. "
            "Debian starts its own Prometheus: `sudo systemctl disable --now prometheus prometheus-alertmanager`"
        )


def _set_aside(store: Path) -> None:
    """Move the last store to NAME.1, so that Prometheus starts empty: figures of former servers would raise alerts about them."""
    before = store.with_name(f"{store.name}.1")
    if store.exists():
        shutil.rmtree(before, ignore_errors=True)
        store.rename(before)


def _front(options: StackOptions, folder: Path, haproxy: str) -> list[SupervisedProcess]:
    """HAProxy, if the options ask for it."""
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
    """Start the champion's servers behind the gateway, and their sentinel."""
    kept = [members.keep(path) for path in options.bundles]
    bundles = {name: str(copy.folder) for name, copy in kept}
    if len(bundles) < len(kept):
        raise LooplineError("two of the bundles are of one model: name one bundle for each model")
    fleet = members.Fleet(
        url=f"http://127.0.0.1:{options.port}",
        champion=members.Lane(bundles, options.replicas),
        prometheus=f"http://127.0.0.1:{options.prometheus_port}",
        arguments=_serving(options),
        sentinel=_sentinel(options),
    )
    members.apply(fleet, folder)


def _parts(options: StackOptions, folder: Path, prometheus: str, alertmanager: str) -> list[SupervisedProcess]:
    """The processes to start, in this order; without servers and sentinel if these belong to the fleet behind a gateway."""
    bundles = [str(path) for path in options.bundles]
    loopline, url = [sys.executable, "-m", "loopline.cli"], f"http://127.0.0.1:{options.port}"
    parts = []
    if options.journal:
        address = f"http://127.0.0.1:{options.journal_port}"
        command = [*loopline, "journal", str(options.journal), "--port", str(options.journal_port)]
        every = ["--every", str(min(options.scrape, 2.0))]
        parts.append(SupervisedProcess("journal", [*command, *every], address, f"{address}/metrics"))
    for number in range(0 if options.gateway else options.replicas):
        metrics = options.port + 1 + number
        command = [*loopline, "serve", *bundles, "--port", str(options.port), "--share-port"]
        command += ["--metrics-port", str(metrics)]
        ready = f"http://127.0.0.1:{metrics}/v2/health/ready"
        parts.append(SupervisedProcess(f"server-{number + 1}", [*command, *_serving(options)], url, ready))
    if not options.gateway:
        address = f"http://127.0.0.1:{options.sentinel_port}/metrics"
        parts.append(
            SupervisedProcess("sentinel", [*loopline, "sentinel", url, *bundles, *_sentinel(options)], address, address)
        )
    if options.retrainer_port:
        address = f"http://127.0.0.1:{options.retrainer_port}"
        command = [*loopline, "retrainer", "--port", str(options.retrainer_port), "--window", options.window]
        command += ["--prometheus", f"http://127.0.0.1:{options.prometheus_port}", "--policy", str(options.policy)]
        command += ["--journal", str(options.journal)] if options.journal else []
        token = {"LOOPLINE_RETRAINER_TOKEN_FILE": str((folder / configuration.TOKEN).resolve())}
        parts.append(SupervisedProcess("retrainer", command, address, f"{address}/healthz", token))
    listen = f"127.0.0.1:{options.alertmanager_port}"
    command = [alertmanager, f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/alertmanager"]
    command += [f"--web.listen-address={listen}", "--cluster.listen-address="]
    parts.append(SupervisedProcess("alertmanager", command, f"http://{listen}", f"http://{listen}/-/ready"))
    listen = f"127.0.0.1:{options.prometheus_port}"
    command = [prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder / STORE}"]
    command += [f"--web.listen-address={listen}"]
    parts.append(SupervisedProcess("prometheus", command, f"http://{listen}", f"http://{listen}/-/ready"))
    return parts


def _serving(options: StackOptions) -> tuple[str, ...]:
    """Further options of each server, including those that a rollout starts later from another shell."""
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
    """End the processes that `up` or a rollout started, and return them."""
    running = processes.running(folder)
    # The supervisor goes first, because it would restart the others.
    processes.end([process for process in running if process.name == supervised.SUPERVISOR])
    running += [process for process in processes.running(folder) if process not in running]
    processes.end(running)
    processes.end(list(members.strays(folder).values()))  # servers that a rollout started and did not note
    if (folder / "state.json").exists():
        processes.save([], folder)
    return running
