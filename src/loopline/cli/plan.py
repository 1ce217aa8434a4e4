"""The verbs that plan capacity: profile a bundle, plan replicas and cost, estimate the memory of larger models."""

from __future__ import annotations

import argparse
from pathlib import Path

from loopline.cli.verbs import Verbs, verb
from loopline.lib import files

PROFILES = Path(".loopline/profiles")


def _profile(options: argparse.Namespace) -> int:
    import json

    from loopline.planning import measure, plan_files, report

    profile = measure.measure(options.bundle, starts=options.starts, rounds=options.rounds)
    path: Path = options.out or PROFILES / f"{profile['model']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(profile, indent=1) + "\n", shared=True)
    print(f"{report.profiled(plan_files.profile(path))}\n\n{path}")
    return 0


def _plan(options: argparse.Namespace) -> int:
    import json

    from loopline.planning import capacity, plan_files, plan_picture, report

    profile, prices = plan_files.profile(options.profile), plan_files.prices(options.prices)
    rates = (
        plan_files.Shape(rate=options.rate).week() if options.traffic is None else plan_files.traffic(options.traffic)
    )
    goal = capacity.Goal(p99=options.p99_ms / 1e3, utilisation=options.utilisation, spare=options.spare)
    plan = capacity.plan(profile, rates, prices, goal)
    if options.plot:
        plan_picture.draw(options.plot, plan, prices.currency)
    if options.json:
        print(json.dumps(report.as_json(plan, prices.currency), indent=1))
    else:
        print(report.planned(plan, profile, prices.currency))
    return 0


def _memory(options: argparse.Namespace) -> int:
    from loopline.planning import plan_files, report

    profiles = [plan_files.profile(path) for path in options.profile]
    prices = plan_files.prices(options.prices) if options.prices else None
    print(report.memories(options.parameters, options.bits or report.BITS, profiles, prices))
    return 0


def _rate(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} requests a second: give a number from 0 to below 1e9")
    return value


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    profile = verb(
        verbs,
        "profile",
        _profile,
        "measure a bundle on this machine: cold start, batches, cores, memory (1 to 2 minutes)",
    )
    profile.add_argument("bundle", type=Path, help="bundle folder, e.g. models/text/bundle")
    profile.add_argument("--out", type=Path, help=f"file to write (default: {PROFILES}/MODEL.json)")
    profile.add_argument("--starts", type=int, default=5, help="number of cold starts")
    profile.add_argument("--rounds", type=int, default=300, help="largest number of rounds of each batch size")

    plan = verb(verbs, "plan", _plan, "plan replicas, p99 latency and monthly cost for a traffic (docs/capacity.md)")
    plan.add_argument("profile", type=Path, help="profile that `loopline profile` wrote")
    plan.add_argument(
        "--prices", type=Path, required=True, help="your price table; serving/prices.example.yaml shows the format"
    )
    traffic = plan.add_mutually_exclusive_group(required=True)
    traffic.add_argument("--traffic", type=Path, help="file with requests a second over the week, YAML or CSV")
    traffic.add_argument("--rate", type=_rate, help="constant number of requests a second")
    plan.add_argument("--p99-ms", type=float, default=100.0, help="goal of the p99 latency in milliseconds")
    plan.add_argument(
        "--utilisation", type=float, default=0.7, help="largest share of a replica's capacity to use, 0 to 1"
    )
    plan.add_argument("--spare", type=int, default=0, help="number of spare machines; 1 survives one failure (N+1)")
    plan.add_argument("--json", action="store_true", help="print one JSON object")
    plan.add_argument("--plot", type=Path, metavar="PNG", help="file to draw the plan to (default: draw none)")

    memory = verb(
        verbs,
        "memory",
        _memory,
        "estimate a larger model's memory, parameters x bits / 8 x 1.2, beside measured profiles",
    )
    memory.add_argument("parameters", type=float, help="number of parameters, e.g. 7e9")
    memory.add_argument("--bits", type=float, nargs="+", help="bits of a parameter (default: 32 16 8 4)")
    memory.add_argument(
        "--profile", type=Path, nargs="+", default=[], help="profiles whose measured memory to show (default: none)"
    )
    memory.add_argument("--prices", type=Path, help="price table, to name the cheapest machine (default: name none)")
