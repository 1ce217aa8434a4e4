"""The verbs that watch what is served."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from loopline.cli.verbs import Verbs, models, room, verb
from loopline.errors import LooplineError

if TYPE_CHECKING:
    import threading

    from loopline.fleet.configuration import StackOptions


def stack_options(options: argparse.Namespace) -> StackOptions:
    """What `stack_arguments` took."""
    from loopline.fleet import configuration

    return configuration.StackOptions(
        bundles=tuple(options.bundle or sorted(Path("models").glob("*/bundle"))),
        replicas=options.replicas,
        window=_window(options),
        scrape=options.scrape,
        sentinel=options.sentinel,
        port=options.port,
        sentinel_port=options.sentinel_port,
        prometheus_port=options.prometheus_port,
        alertmanager_port=options.alertmanager_port,
        webhook=options.webhook,
        retrainer_port=options.retrainer_port,
        policy=options.policy,
        gateway=options.gateway,
        journal=options.journal,
        journal_sample=options.journal_sample,
        journal_port=options.journal_port,
        keep_metrics=options.keep_metrics,
    )


def _address(*names: str, default: str) -> str:
    """Of the first of these that `up` started and that runs."""
    from loopline.fleet import members
    from loopline.lib import processes

    found = {process.name: process.address for process in processes.running(members.FOLDER)}
    return next((found[name] for name in names if found.get(name)), default)


def _prometheus(options: argparse.Namespace) -> str:
    return options.prometheus or _address("prometheus", default="http://127.0.0.1:9090")


def _status(options: argparse.Namespace) -> int:
    from loopline.deploy import status
    from loopline.lib import credentials

    found = status.look(options.url, credentials.secret(credentials.SERVER))
    print(status.as_json(found) if options.json else status.as_text(found))
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
        print("ended the containers; data stays in its volumes")
        return 0
    ended = stack.down()
    print("ended " + ", ".join(process.name for process in ended) if ended else "nothing is up")
    return 0


def _until_ended() -> threading.Event:
    """Set when we are asked to end."""
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
    watching = sentinel.Sentinel(options.url, sentinel.load(options.bundle), token)
    watching.run(options.every, options.port, stop, options.host)
    return 0


def _traffic(options: argparse.Namespace) -> int:
    from loopline.lib import credentials
    from loopline.simulate import traffic

    plan = traffic.TrafficPlan(
        url=options.url or _address("gateway", "server-1", default="http://127.0.0.1:8080"),
        profile=options.profile,
        dataset=options.dataset,
        strength=options.strength,
        rate=options.rate,
        seconds=options.seconds,
        token=credentials.secret(credentials.SERVER),
    )
    chosen, not_up = traffic.choose(options.model, () if options.model else models(), plan)
    pools, unfit = traffic.pools(options.model, () if options.model else chosen, plan)
    for line in (*not_up, *unfit):
        print(f"left out: {line}")
    counts = traffic.send(pools, plan)
    print(f"{plan.url}: " + ", ".join(f"{status}: {count:,}" for status, count in sorted(counts.items()) if count))
    if wrong := traffic.failures(counts):
        raise LooplineError(wrong)
    return 0


def _rules(options: argparse.Namespace) -> int:
    from loopline.observability import rules

    made = rules.operator if options.operator else rules.text
    text = made(_window(options), options.runbooks)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(options.out)
    return 0


def _grafana(options: argparse.Namespace) -> int:
    from loopline.lib import credentials
    from loopline.observability.grafana import files

    if options.verb == "write":
        print("\n".join(map(str, files.write(options.out, _window(options), options.runbooks))))
        return 0
    from loopline.observability.grafana import push

    if not (token := credentials.secret("GRAFANA_TOKEN")):
        raise LooplineError("GRAFANA_TOKEN is not set: make a token of a service account in Grafana")
    if options.verb == "push":
        done = push.push(options.url, token, window=_window(options), runbooks=options.runbooks, source=options.source)
        print("\n".join(done))
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
    said = drift_report.make(
        options.bundle,
        options.out,
        prometheus=prometheus,
        window=window,
        at=decisions.moment(options.at) if options.at else None,
        url=options.url,
        token=credentials.secret(credentials.SERVER),
        journal=options.journal,
    )
    print(f"{options.out}: {said}")
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


def add(rooms: Verbs) -> None:
    """Put this room's verbs into the command line."""
    _running(rooms)
    _looking(rooms)
    _making(rooms)


def stack_arguments(start: argparse._ActionsContainer) -> None:
    """Options of a stack, whoever starts it."""
    start.add_argument("--replicas", type=int, default=1, help="of the server")
    start.add_argument("--window", default="1h", help="of traffic that is held against the reference: 2m, 1h, 1d")
    start.add_argument("--scrape", type=float, default=15.0, help="seconds between two looks at the metrics")
    start.add_argument("--sentinel", type=float, default=60.0, help="seconds between two rounds of golden inputs")
    start.add_argument(
        "--port", type=int, default=8080, help="of the servers (default: 8080); their metrics have the ports after it"
    )
    start.add_argument("--sentinel-port", type=int, default=9101, help="default: 9101")
    start.add_argument("--prometheus-port", type=int, default=9090, help="default: 9090")
    start.add_argument("--alertmanager-port", type=int, default=9093, help="default: 9093")
    start.add_argument("--retrainer-port", type=int, help="start the retrainer too, and tell it of alerts")
    policy = Path("monitoring/retraining.yaml")
    start.add_argument("--policy", type=Path, default=policy, help=f"the retrainer's (default: {policy})")
    start.add_argument("--journal-sample", type=float, default=0.1, help="share of ordinary samples that is kept")
    start.add_argument("--journal-port", type=int, default=9102, help="default: 9102")
    start.add_argument("--webhook", help="address that Alertmanager tells of alerts")
    start.add_argument(
        "--keep-metrics", action="store_true", help="continue with the figures that Prometheus has (default: none)"
    )


def _running(rooms: Verbs) -> None:
    start = verb(rooms, "up", _up, "start servers, sentinel, Prometheus and Alertmanager on the loopback")
    start.add_argument("bundle", nargs="*", type=Path, help="default: models/*/bundle")
    start.add_argument("--gateway", action="store_true", help="HAProxy at --port: `loopline rollout` needs it")
    start.add_argument("--journal", type=Path, metavar="FOLDER", help="keep samples and labels in it (docs/journal.md)")
    stack_arguments(start)
    shown = verb(rooms, "status", _status, "show what is up, what it serves, what trains, what was decided, what fires")
    shown.add_argument("--url", help="address of a server (default: what `up` started, else port 8080)")
    shown.add_argument("--json", action="store_true", help="print one JSON object")
    ends = verb(rooms, "down", _down, "end what `up` or `deploy` started on this machine")
    ends.add_argument("--target", choices=("process", "compose"), default="process")
    keep = verb(rooms, "supervise", _supervise, "start anew what `up` started and what ended; `up` starts this itself")
    keep.add_argument("folder", type=Path, nargs="?", default=Path(".loopline/up"))

    send = verb(rooms, "traffic", _traffic, "replay test samples, or a shift of them, to a live server")
    send.add_argument("model", nargs="*", help="default: all")
    send.add_argument(
        "--profile", default="clean", help="clean, prior, other-domain, noisy, noise, blur, dark, typos, ..."
    )
    send.add_argument(
        "--dataset", metavar="NAME|FOLDER", help="of the profile other-domain (default: see docs/monitoring.md)"
    )
    send.add_argument("--strength", type=int, choices=(1, 2, 3), default=3, help="of a shift")
    send.add_argument("--rate", type=float, default=20.0, help="requests a second, over all models (default: 20)")
    send.add_argument("--seconds", type=float, default=60.0, help="duration (default: 60)")
    send.add_argument("--url", help="default: what `up` started, else port 8080")

    watch = verb(rooms, "sentinel", _sentinel, "send golden inputs to a live server and compare the answers")
    watch.add_argument("url")
    watch.add_argument("bundle", nargs="+", type=Path)
    watch.add_argument("--every", type=float, default=60.0, help="seconds")
    watch.add_argument("--port", type=int, default=9101, help="of its metrics")
    watch.add_argument("--host", default="127.0.0.1", help="address that its metrics are on")


def _making(rooms: Verbs) -> None:
    made = verb(rooms, "rules", _rules, "write Prometheus' recording rules and alerts")
    made.add_argument("--window", default="1h")
    made.add_argument("--runbooks", default="docs/runbooks", help="address of that folder, for the alerts' links")
    made.add_argument("--out", type=Path, default=Path("monitoring/prometheus/rules.yml"))
    made.add_argument("--operator", action="store_true", help="as a PrometheusRule, for the Prometheus operator")

    grafana = room(rooms, "grafana", "dashboards, alerts and annotations; the token of a Grafana is in GRAFANA_TOKEN")
    for name, text in {
        "write": "write the files that a Grafana is provisioned with",
        "push": "make the dashboards and alerts of a Grafana that is there those of this version",
        "annotate": "mark a deployment, a retraining or a rollback on the dashboards",
        "export": "write a Grafana's Loopline dashboards back to files",
    }.items():
        made = verb(grafana, name, _grafana, text)
        if name != "write":
            made.add_argument("url", help="e.g. http://127.0.0.1:3000")
        if name in ("write", "export"):
            made.add_argument("--out", type=Path, default=Path("monitoring/grafana"))
        if name in ("write", "push"):
            made.add_argument("--window", default="1h")
            made.add_argument(
                "--runbooks", default="docs/runbooks", help="address of that folder, for the alerts' links"
            )
        if name == "push":
            made.add_argument("--source", default="loopline-prometheus", help="uid of Grafana's data source")
        if name == "annotate":
            made.add_argument("text")
            made.add_argument("--tag", action="append", default=[], help="may be given several times")
            made.add_argument("--dashboard", help="uid of the only one to mark, e.g. loopline-drift")


def _looking(rooms: Verbs) -> None:
    look = verb(rooms, "watch", _watch, "draw the drift of all models in the terminal, from what Prometheus recorded")
    look.add_argument("model", nargs="*", help="default: all")
    look.add_argument("--prometheus", metavar="URL", help="default: what `up` started, else port 9090")
    look.add_argument("--since", help="length of the time line: 30m, 6h, 7d (default: six windows of the rules)")
    look.add_argument("--every", type=float, default=5.0, help="seconds between two pictures")
    look.add_argument("--once", action="store_true", help="one picture")

    drift = room(rooms, "drift", "what a model's traffic looks like beside its reference")
    page = verb(drift, "report", _drift_report, "write one HTML page about a bundle and a window of its traffic")
    page.add_argument("bundle", type=Path, help="a folder, e.g. models/text/bundle")
    page.add_argument("--out", type=Path, default=Path("drift.html"))
    page.add_argument("--prometheus", metavar="URL", help="default: what `up` started, else port 9090")
    page.add_argument("--window", help="of traffic: 2m, 1h, 1d (default: that of the rules in Prometheus)")
    page.add_argument("--journal", type=Path, metavar="FOLDER", help="show examples from it")
    when = page.add_mutually_exclusive_group()
    when.add_argument("--at", metavar="TIME", help="the window's end, e.g. 2026-11-21T14:05 (default: now)")
    when.add_argument("--url", help="ask this server in place of Prometheus: all that it counted since its start")
