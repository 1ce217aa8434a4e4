"""The verbs that start servers and their monitoring, and show what they report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from loopline.cli.verbs import Verbs, chosen, models, room, verb
from loopline.errors import LooplineError

if TYPE_CHECKING:
    import threading

    from loopline.fleet.configuration import StackOptions

STACK = "loopline.fleet.configuration:StackOptions"  # declares the options that `up` and `deploy` share
STARTED = "that of `up` if it runs, else port"  # the default of an address


def stack_options(options: argparse.Namespace) -> StackOptions:
    """The StackOptions that the options of `up` or `deploy` describe. Raises LooplineError if --window is malformed."""
    from loopline.fleet import configuration

    _window(options)
    bundles = tuple(options.bundle or sorted(Path("models").glob("*/bundle")))
    return chosen(configuration.StackOptions, options, bundles=bundles)


def _address(*names: str, default: str) -> str:
    """The address of the first process of these names that `up` started and that still runs; `default` if none does."""
    from loopline.fleet import members
    from loopline.lib import processes

    addresses = {process.name: process.address for process in processes.running(members.FOLDER)}
    return next((addresses[name] for name in names if addresses.get(name)), default)


def _prometheus(options: argparse.Namespace) -> str:
    return options.prometheus or _address("prometheus", default="http://127.0.0.1:9090")


def _status(options: argparse.Namespace) -> int:
    from loopline.deploy import status
    from loopline.lib import credentials

    report = status.look(options.url, credentials.secret(credentials.SERVER))
    print(status.as_json(report) if options.json else status.as_text(report))
    return 0


def _up(options: argparse.Namespace) -> int:
    from loopline.fleet import stack

    for process in stack.up(stack_options(options)):
        print(f"{process.name:14} {process.address}")
    if options.keep_metrics:
        print(stack.KEPT)
    return 0


def _down(options: argparse.Namespace) -> int:
    from loopline.fleet import stack

    if options.target == "compose":
        from loopline.deploy import compose

        compose.Compose().down()
        print("ended the containers; their data stays in the volumes")
        return 0
    ended = stack.down()
    print("ended " + ", ".join(process.name for process in ended) if ended else "nothing is up")
    return 0


def _until_ended() -> threading.Event:
    """An event that SIGTERM or SIGINT sets."""
    import signal
    import threading

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _supervise(options: argparse.Namespace) -> int:
    import logging

    from loopline.deploy import supervisor

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    supervisor.run(options.folder, _until_ended())
    return 0


def _sentinel(options: argparse.Namespace) -> int:
    from loopline.lib import credentials
    from loopline.observability import sentinel

    stop = _until_ended()
    token = credentials.secret(credentials.SERVER)
    watcher = sentinel.Sentinel(options.url, sentinel.load(options.bundle), token)
    watcher.run(options.every, options.port, stop, options.host)
    return 0


def _traffic(options: argparse.Namespace) -> int:
    from loopline.lib import credentials
    from loopline.simulate import traffic

    url = options.url or _address("gateway", "server-1", default="http://127.0.0.1:8080")
    plan = chosen(traffic.TrafficPlan, options, url=url, token=credentials.secret(credentials.SERVER))
    names, not_up = traffic.choose(options.model, () if options.model else models(), plan)
    pools, unfit = traffic.pools(options.model, () if options.model else names, plan)
    for line in (*not_up, *unfit):
        print(f"left out: {line}")
    counts = traffic.send(pools, plan)
    print(f"{plan.url}: " + ", ".join(f"{status}: {count:,}" for status, count in sorted(counts.items()) if count))
    if failures := traffic.failures(counts):
        raise LooplineError(failures)
    return 0


def _rules(options: argparse.Namespace) -> int:
    from loopline.observability import rules

    write = rules.operator if options.operator else rules.text
    text = write(_window(options), options.runbooks)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(options.out)
    return 0


def _grafana(options: argparse.Namespace) -> int:
    from loopline.lib import credentials
    from loopline.observability.grafana import provisioning

    if options.verb == "write":
        print("\n".join(map(str, provisioning.write(options.out, _window(options), options.runbooks))))
        return 0
    from loopline.observability.grafana import push

    if not (token := credentials.secret("GRAFANA_TOKEN")):
        raise LooplineError("GRAFANA_TOKEN is not set: create a service account's token in Grafana and set it")
    if options.verb == "push":
        lines = push.push(options.url, token, window=_window(options), runbooks=options.runbooks, source=options.source)
        print("\n".join(lines))
    elif options.verb == "annotate":
        print(push.annotate(options.url, token, options.text, options.tag, options.dashboard))
    else:
        print("\n".join(map(str, push.export(options.url, token, options.out))))
    return 0


def _watch(options: argparse.Namespace) -> int:
    from loopline.observability import watch

    prometheus = _prometheus(options)
    since = _duration("--since", options.since) if options.since else watch.span(prometheus)
    watch.run(prometheus, models=options.model, since=since, once=options.once, every=options.every)
    return 0


def _drift_report(options: argparse.Namespace) -> int:
    from loopline.lib import credentials
    from loopline.observability import drift_report, prometheus_api
    from loopline.release import decisions

    prometheus, window = _prometheus(options), ""
    if not options.url:
        window = _window(options) if options.window else prometheus_api.rules_window(prometheus)
    verdict = drift_report.make(
        options.bundle,
        options.out,
        prometheus=prometheus,
        window=window,
        at=decisions.moment(options.at) if options.at else None,
        url=options.url,
        token=credentials.secret(credentials.SERVER),
        journal=options.journal,
    )
    print(f"{options.out}: {verdict}")
    return 0


def _window(options: argparse.Namespace) -> str:
    return _duration("--window", options.window)


def _duration(option: str, text: str) -> str:
    from loopline.observability import rules

    try:
        rules.seconds(text)
    except ValueError as error:
        raise LooplineError(f"{option}: {error}") from error
    return text


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    _running(verbs)
    _looking(verbs)
    _making(verbs)


def window_argument(command: argparse._ActionsContainer) -> None:
    """Add --window, the window of the drift rules."""
    command.add_argument("--window", default="1h", help="length of the traffic window for drift: 2m, 1h, 1d")


def _running(verbs: Verbs) -> None:
    start = verb(verbs, "up", _up, "start servers, sentinel, Prometheus and Alertmanager on 127.0.0.1")
    start.add_argument("bundle", nargs="*", type=Path, help="bundle folders (default: models/*/bundle)")
    start.options_of(STACK)
    show = verb(verbs, "status", _status, "show processes, served versions, training runs, decisions and firing alerts")
    show.add_argument("--url", help=f"address of a server (default: {STARTED} 8080)")
    show.add_argument("--json", action="store_true", help="print one JSON object")
    end = verb(verbs, "down", _down, "end the servers that `up` or `deploy` started on this machine")
    end.add_argument(
        "--target", choices=("process", "compose"), default="process", help="servers to end: processes or containers"
    )
    keep = verb(
        verbs, "supervise", _supervise, "restart processes of `up` that have ended; `up` starts this verb itself"
    )
    keep.add_argument(
        "folder", type=Path, nargs="?", default=Path(".loopline/up"), help="folder in which `up` keeps its state"
    )

    send = verb(verbs, "traffic", _traffic, "send test samples, or a shift of them, to a live server")
    send.add_argument("model", nargs="*", help="names of models (default: all)")
    send.options_of("loopline.simulate.traffic:TrafficPlan")
    send.add_argument("--url", help=f"address of a server (default: {STARTED} 8080)")

    watch = verb(verbs, "sentinel", _sentinel, "send golden inputs to a live server and compare the answers")
    watch.add_argument("url", help="address of a server, e.g. http://127.0.0.1:8080")
    watch.add_argument("bundle", nargs="+", type=Path, help="bundle folders with the golden inputs to send")
    watch.add_argument("--every", type=float, default=60.0, help="seconds between two rounds")
    watch.add_argument("--port", type=int, default=9101, help="port of the sentinel's metrics")
    watch.add_argument("--host", default="127.0.0.1", help="address of the sentinel's metrics")


def _making(verbs: Verbs) -> None:
    rules = verb(verbs, "rules", _rules, "write Prometheus' recording rules and alerts")
    window_argument(rules)
    _runbooks_argument(rules)
    rules.add_argument("--out", type=Path, default=Path("monitoring/prometheus/rules.yml"), help="file to write")
    rules.add_argument("--operator", action="store_true", help="write a PrometheusRule, for the Prometheus operator")

    grafana = room(verbs, "grafana", "write, push or export Grafana's dashboards and alerts (token: GRAFANA_TOKEN)")
    for name, text in {
        "write": "write the files that provision a Grafana",
        "push": "replace the Loopline dashboards and alerts of a running Grafana by those of this version",
        "annotate": "mark a deployment, a retraining or a rollback on the dashboards",
        "export": "write a Grafana's Loopline dashboards back to files",
    }.items():
        command = verb(grafana, name, _grafana, text)
        if name != "write":
            command.add_argument("url", help="address of Grafana, e.g. http://127.0.0.1:3000")
        if name in ("write", "export"):
            folder = Path("monitoring/grafana")
            command.add_argument("--out", type=Path, default=folder, help="folder to write to")
        if name in ("write", "push"):
            window_argument(command)
            _runbooks_argument(command)
        if name == "push":
            command.add_argument("--source", default="loopline-prometheus", help="uid of the data source in Grafana")
        if name == "annotate":
            command.add_argument("text", help="text of the annotation")
            command.add_argument(
                "--tag", action="append", default=[], help="tag of the annotation; repeat for several (default: none)"
            )
            command.add_argument("--dashboard", help="uid of a dashboard, e.g. loopline-drift (default: all)")


def _runbooks_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument("--runbooks", default="docs/runbooks", help="address of the runbooks that alerts link to")


def _looking(verbs: Verbs) -> None:
    look = verb(verbs, "watch", _watch, "draw the drift of all models in the terminal, from what Prometheus recorded")
    look.add_argument("model", nargs="*", help="names of models (default: all)")
    look.add_argument("--prometheus", metavar="URL", help=f"address of Prometheus (default: {STARTED} 9090)")
    look.add_argument("--since", help="length of the time line: 30m, 6h, 7d (default: six windows of the rules)")
    look.add_argument("--every", type=float, default=5.0, help="seconds between two pictures")
    look.add_argument("--once", action="store_true", help="draw one picture and exit")

    drift = room(verbs, "drift", "compare a model's traffic with its reference")
    page = verb(drift, "report", _drift_report, "write one HTML page about a bundle and a window of its traffic")
    page.add_argument("bundle", type=Path, help="bundle folder, e.g. models/text/bundle")
    page.add_argument("--out", type=Path, default=Path("drift.html"), help="file to write")
    page.add_argument("--prometheus", metavar="URL", help=f"address of Prometheus (default: {STARTED} 9090)")
    page.add_argument(
        "--window", help="length of the traffic window, e.g. 2m, 1h or 1d (default: that of the rules in Prometheus)"
    )
    page.add_argument(
        "--journal", type=Path, metavar="FOLDER", help="journal's folder to show examples from (default: no examples)"
    )
    source = page.add_mutually_exclusive_group()
    source.add_argument("--at", metavar="TIME", help="end of the window, e.g. 2026-11-21T14:05 (default: now)")
    source.add_argument(
        "--url", help="address of a server to ask instead of Prometheus, for all that it counted since its start"
    )
