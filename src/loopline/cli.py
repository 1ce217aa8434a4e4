"""`loopline VERB`: the verbs that the Makefile and dvc.yaml call. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

from loopline import __version__
from loopline.errors import LooplineError

STAGES = ("ingest", "validate", "train", "export", "quantize", "evaluate", "calibrate", "package")


def _stage(options: argparse.Namespace) -> int:
    import_module(f"loopline.stages.{options.stage}").main(options.model)
    return 0


def _data_list(_: argparse.Namespace) -> int:
    from loopline.data import catalog

    print(catalog.listing())
    return 0


def _data_fetch(options: argparse.Namespace) -> int:
    from loopline.data import catalog, download

    for name in options.dataset:
        print(download.fetch(catalog.find(name)))
    return 0


def _data_add(options: argparse.Namespace) -> int:
    from loopline.data import versions

    print(versions.add(options.model, options.folder, remote=options.remote))
    return 0


def _track_sync(_: argparse.Namespace) -> int:
    from loopline.training import tracking

    print("\n".join(tracking.sync()) or "nothing to send")
    return 0


def _release(options: argparse.Namespace) -> int:
    from loopline.release import registry

    code = 0
    for name in options.model or _models():
        if options.verb == "register":
            print(registry.register(Path("models") / name / "bundle"))
        elif options.verb == "promote":
            decision = registry.promote(name, again=options.again)
            print(f"{name}: {decision}")
            code = max(code, 0 if decision.promote else 2)
        else:
            print(registry.rollback(name, options.reason))
    return code


def _history(options: argparse.Namespace) -> int:
    from loopline.release import decisions, registry

    log = registry.history(options.model, decisions.moment(options.at) if options.at else None)
    print("\n".join(map(str, log.records)) or ("no champion then" if options.at else "no decision yet"))
    if log.damaged:
        print(f"{decisions.path()}: unreadable line(s) {', '.join(map(str, log.damaged))}", file=sys.stderr)
    return 0


def _serve(options: argparse.Namespace) -> int:
    from loopline.serving import server
    from loopline.serving.inference import Limits

    limits = Limits(
        body_bytes=options.max_body_mb << 20,
        timeout_ms=options.timeout_ms,
        cache_bytes=options.cache_mb << 20,
        signals=options.signals,
    )
    return server.run(
        options.bundle,
        server.Options(
            host=options.host,
            port=options.port,
            metrics_port=options.metrics_port,
            slots=options.slots,
            grace=options.grace,
            drain=options.drain,
            limits=limits,
            demo=options.demo,
            log_requests=options.log_requests,
        ),
    )


def _predict(options: argparse.Namespace) -> int:
    from loopline.offline import predict

    chosen = predict.Options(
        column=options.column, slots=options.slots, batch_rows=options.batch_rows, part_rows=options.part_rows
    )
    summary = predict.predict(options.bundle, options.input, options.output, chosen)
    print(f"{options.output}: {summary}")
    return summary.code


def _rules(options: argparse.Namespace) -> int:
    from loopline.monitoring import rules

    text = rules.text(_window(options), options.runbooks)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(options.out)
    return 0


def _window(options: argparse.Namespace) -> str:
    from loopline.monitoring import rules

    try:
        rules.seconds(options.window)
    except ValueError as error:
        raise LooplineError(f"--window: {error}") from error
    return str(options.window)


def _up(options: argparse.Namespace) -> int:
    from loopline.monitoring import stack

    started = stack.up(
        stack.Options(
            bundles=tuple(options.bundle or sorted(Path("models").glob("*/bundle"))),
            replicas=options.replicas,
            window=_window(options),
            scrape=options.scrape,
            sentinel=options.sentinel,
            port=options.port,
            webhook=options.webhook,
        )
    )
    for process in started:
        print(f"{process.name:14} {process.address}")
    return 0


def _down(_: argparse.Namespace) -> int:
    from loopline.monitoring import stack

    ended = stack.down()
    print("ended " + ", ".join(process.name for process in ended) if ended else "nothing is up")
    return 0


def _sentinel(options: argparse.Namespace) -> int:
    import os
    import signal
    import threading

    from loopline.monitoring import sentinel

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    token = os.environ.get("LOOPLINE_TOKEN")
    sentinel.Sentinel(options.url, sentinel.load(options.bundle), token).run(options.every, options.port, stop)
    return 0


def _traffic(options: argparse.Namespace) -> int:
    from loopline.monitoring import traffic

    plan = traffic.Plan(
        url=options.url, profile=options.profile, strength=options.strength, rate=options.rate, seconds=options.seconds
    )
    pools = {name: traffic.samples(name, plan) for name in options.model or _models()}
    counts = traffic.send(pools, plan)
    print(", ".join(f"{status}: {count}" for status, count in sorted(counts.items())))
    return 0 if counts["200"] else 1


def _models() -> list[str]:
    from loopline import settings

    return list(settings.load().models)


Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def parser() -> argparse.ArgumentParser:
    """The command line; `tests/test_cli.py` checks that it answers fast."""
    top = argparse.ArgumentParser(prog="loopline", description="From data to a monitored service and back again.")
    top.add_argument("--version", action="version", version=f"loopline {__version__}")
    rooms = top.add_subparsers(title="verbs", required=True, metavar="VERB")
    _pipeline(rooms)
    _serving(rooms)
    _monitoring(rooms)
    _releases(rooms)
    return top


def _verb(into: Verbs, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    made = into.add_parser(name, help=text, description=text)
    made.set_defaults(run=run, verb=name)
    return made


def _room(rooms: Verbs, name: str, text: str) -> Verbs:
    return rooms.add_parser(name, help=text, description=text).add_subparsers(required=True, metavar="VERB")


def _pipeline(rooms: Verbs) -> None:
    stage = _verb(rooms, "stage", _stage, "run one stage of the pipeline for one model, as dvc.yaml does")
    stage.add_argument("stage", choices=STAGES)
    stage.add_argument("model", help="a name under models: in params.yaml")

    data = _room(rooms, "data", "datasets: list the catalogue, fetch, add a labelled batch")
    _verb(data, "list", _data_list, "the catalogue, and what of it is on this machine")
    fetch = _verb(data, "fetch", _data_fetch, "download datasets of the catalogue now")
    fetch.add_argument("dataset", nargs="+")
    add = _verb(data, "add", _data_add, "validate a labelled batch and make it the model's next dataset version")
    add.add_argument("model")
    add.add_argument("folder")
    add.add_argument("--remote", help="the DVC remote that keeps this batch (default: the repository's)")

    track = _room(rooms, "track", "experiment tracking")
    _verb(track, "sync", _track_sync, "send the runs that were kept while the tracking server was away")


def _serving(rooms: Verbs) -> None:
    serve = _verb(
        rooms, "serve", _serve, "serve bundles over HTTP: the Open Inference Protocol v2, and a route for people"
    )
    serve.add_argument("bundle", nargs="+", type=Path, help="a bundle, e.g. models/text/bundle, or a folder of them")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8080, help="0: any free one")
    serve.add_argument(
        "--metrics-port", type=int, help="answers as well; of this process alone where several share --port"
    )
    serve.add_argument("--slots", type=int, help="batches that run at once (default: the cores this process may use)")
    serve.add_argument("--timeout-ms", type=int, default=1000, help="of a request that sends no X-Request-Timeout-Ms")
    serve.add_argument(
        "--cache-mb", type=int, default=0, help="keep answers by the content of what was asked (default: off)"
    )
    serve.add_argument(
        "--signals", type=int, default=100, help="samples a second and model whose drift signals are counted (0: none)"
    )
    serve.add_argument("--max-body-mb", type=int, default=16, help="of a request")
    serve.add_argument(
        "--grace", type=float, default=1.0, help="seconds of answering after SIGTERM, not ready any more"
    )
    serve.add_argument("--drain", type=float, default=30.0, help="seconds to finish what is in flight")
    serve.add_argument(
        "--no-demo", dest="demo", action="store_false", help="without the demo page and the bundles' files"
    )

    serve.add_argument("--log-requests", action="store_true", help="a line for each answer, with its request id")

    batch = _verb(
        rooms, "predict", _predict, "predict a whole file of texts, or a folder or list of images, into a file"
    )
    batch.add_argument("bundle", type=Path, help="a folder, e.g. models/text/bundle")
    batch.add_argument("input", help="CSV, TSV, JSON Lines or Parquet; a folder of images or a list of them; any URL")
    batch.add_argument("output", help="a path or URL in .parquet, .csv or .jsonl")
    batch.add_argument("--column", default="text", help="of the texts (default: text)")
    batch.add_argument("--slots", type=int, help="batches that run at once (default: the cores this process may use)")
    batch.add_argument("--batch-rows", type=int, help="items the model gets at once (default: the fastest number here)")
    batch.add_argument("--part-rows", type=int, help="items between two savings (default: 8192 texts, 1024 images)")


def _monitoring(rooms: Verbs) -> None:
    start = _verb(rooms, "up", _up, "start servers, sentinel, Prometheus and Alertmanager on the loopback")
    start.add_argument("bundle", nargs="*", type=Path, help="default: models/*/bundle")
    start.add_argument("--replicas", type=int, default=1, help="of the server")
    start.add_argument("--window", default="1h", help="of traffic that is held against the reference: 2m, 1h, 1d")
    start.add_argument("--scrape", type=float, default=15.0, help="seconds between two looks at the metrics")
    start.add_argument("--sentinel", type=float, default=60.0, help="seconds between two rounds of golden inputs")
    start.add_argument("--port", type=int, default=8080, help="of the servers")
    start.add_argument("--webhook", help="address that Alertmanager tells of alerts")
    _verb(rooms, "down", _down, "end what `up` started")

    send = _verb(rooms, "traffic", _traffic, "replay test samples, or a shift of them, to a live server")
    send.add_argument("model", nargs="*", help="default: all")
    send.add_argument("--profile", default="clean", help="clean, prior, noise, blur, dark, typos, ...")
    send.add_argument("--strength", type=int, choices=(1, 2, 3), default=3, help="of a shift")
    send.add_argument("--rate", type=float, default=20.0, help="requests a second")
    send.add_argument("--seconds", type=float, default=60.0)
    send.add_argument("--url", default="http://127.0.0.1:8080")

    watch = _verb(rooms, "sentinel", _sentinel, "send golden inputs to a live server and compare the answers")
    watch.add_argument("url")
    watch.add_argument("bundle", nargs="+", type=Path)
    watch.add_argument("--every", type=float, default=60.0, help="seconds")
    watch.add_argument("--port", type=int, default=9101, help="of its metrics, on the loopback")

    made = _verb(rooms, "rules", _rules, "write Prometheus' recording rules and alerts")
    made.add_argument("--window", default="1h")
    made.add_argument("--runbooks", default="docs/runbooks", help="address of that folder, for the alerts' links")
    made.add_argument("--out", type=Path, default=Path("monitoring/prometheus/rules.yml"))


def _releases(rooms: Verbs) -> None:
    release = _room(rooms, "release", "the model registry")
    for name, text in {
        "register": "put the bundles in the registry as challengers",
        "promote": "make the challenger champion if it wins on evidence; exits with 2 if it is refused",
        "rollback": "put the champion before this one back",
    }.items():
        made = _verb(release, name, _release, text)
        made.add_argument("model", nargs="*", help="default: all")
        if name == "promote":
            made.add_argument("--again", action="store_true", help="even if it was rolled back before")
        if name == "rollback":
            made.add_argument("--reason", default="asked for", help="for the decision log")
    history = _verb(release, "history", _history, "every decision, or who was champion at a time, and why")
    history.add_argument("model", nargs="*", help="default: all")
    history.add_argument("--at", metavar="TIME", help="say who was champion then, e.g. 2026-11-21T14:05")


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; returns the exit code. A user's mistake is one message, never a traceback."""
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except LooplineError as error:
        print(f"loopline: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("loopline: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
