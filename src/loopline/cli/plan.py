"""What it will cost: measuring a profile, planning with it, memory of larger models."""

from __future__ import annotations

import argparse
from pathlib import Path

from loopline.cli.verbs import Verbs, verb
from loopline.lib import files

PROFILES = Path(".loopline/profiles")


def _profile(options: argparse.Namespace) -> int:
    import json

    from loopline.planning import inputs, measure, report

    found = measure.measure(options.bundle, starts=options.starts, rounds=options.rounds)
    path: Path = options.out or PROFILES / f"{found['model']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(found, indent=1) + "\n", shared=True)
    print(f"{report.profiled(inputs.profile(path))}\n\n{path}")
    return 0


def _plan(options: argparse.Namespace) -> int:
    import json

    from loopline.planning import capacity, inputs, picture, report

    profile, prices = inputs.profile(options.profile), inputs.prices(options.prices)
    rates = inputs.Shape(rate=options.rate).week() if options.traffic is None else inputs.traffic(options.traffic)
    goal = capacity.Goal(p99=options.p99_ms / 1e3, utilisation=options.utilisation, spare=options.spare)
    plan = capacity.plan(profile, rates, prices, goal)
    if options.plot:
        picture.draw(options.plot, plan, prices.currency)
    if options.json:
        print(json.dumps(report.as_json(plan, prices.currency), indent=1))
    else:
        print(report.planned(plan, profile, prices.currency))
    return 0


def _memory(options: argparse.Namespace) -> int:
    from loopline.planning import inputs, report

    profiles = [inputs.profile(path) for path in options.profile]
    prices = inputs.prices(options.prices) if options.prices else None
    print(report.memories(options.parameters, options.bits or report.BITS, profiles, prices))
    return 0


def _rate(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no number of requests a second")
    return value


def add(rooms: Verbs) -> None:
    """Put this room's verbs into the command line."""
    profile = verb(
        rooms,
        "profile",
        _profile,
        "measure a bundle on this machine: cold start, batches, cores, memory (1 to 2 minutes)",
    )
    profile.add_argument("bundle", type=Path, help="a folder, e.g. models/text/bundle")
    profile.add_argument("--out", type=Path, help=f"default: {PROFILES}/MODEL.json")
    profile.add_argument("--starts", type=int, default=5, help="cold starts (default: 5)")
    profile.add_argument("--rounds", type=int, default=300, help="of each batch size, at most (default: 300)")

    plan = verb(rooms, "plan", _plan, "replicas, p99 and monthly cost of a traffic: docs/capacity.md")
    plan.add_argument("profile", type=Path, help="what `loopline profile` wrote")
    plan.add_argument(
        "--prices", type=Path, required=True, help="your price table; serving/prices.example.yaml is a form"
    )
    traffic = plan.add_mutually_exclusive_group(required=True)
    traffic.add_argument("--traffic", type=Path, help="requests a second over the week, YAML or CSV")
    traffic.add_argument("--rate", type=_rate, help="or always so many a second")
    plan.add_argument("--p99-ms", type=float, default=100.0, help="the goal (default: 100)")
    plan.add_argument("--utilisation", type=float, default=0.7, help="of a replica at most (default: 0.7)")
    plan.add_argument("--spare", type=int, default=0, help="machines that may fail unnoticed (default: 0; N+1 is 1)")
    plan.add_argument("--json", action="store_true", help="for programs")
    plan.add_argument("--plot", type=Path, metavar="PNG", help="draw it")

    memory = verb(
        rooms, "memory", _memory, "what a larger model takes: parameters x bits / 8 x 1.2, and what was measured"
    )
    memory.add_argument("parameters", type=float, help="e.g. 7e9")
    memory.add_argument("--bits", type=float, nargs="+", help="of a parameter (default: 32 16 8 4)")
    memory.add_argument("--profile", type=Path, nargs="+", default=[], help="show what these measured beside it")
    memory.add_argument("--prices", type=Path, help="name the cheapest machine that holds it")
