"""The verbs that put bundles into service, the same wherever that is: deploy, canary, verify, rollback."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from loopline.cli import monitoring, rollout
from loopline.cli.verbs import Verbs, verb
from loopline.errors import LooplineError

if TYPE_CHECKING:
    from loopline.deploy.targets import Target

OVERLAY = Path("serving/kubernetes/overlays/local")


def _target(options: argparse.Namespace) -> Target:
    """Where to."""
    if options.target == "process":
        from loopline.deploy import process

        return process.Processes(
            options=monitoring.stack_options(options),
            controller=rollout.controller(options),
            plan=None if options.rolling else rollout.plan(options),
            again=options.again,
        )
    if options.target == "compose":
        from loopline.deploy import compose

        plan = rollout.plan(options)
        return compose.Compose(
            services=_services(options),
            share=plan.steps[0],
            plan=plan if options.wait else None,
            scrape=options.scrape,
            policy=options.policy,
        )
    from loopline.deploy import kubectl, kubernetes

    plan = rollout.plan(options)
    return kubernetes.Images(
        cluster=kubectl.Cluster(options.overlay, options.context),
        image=options.image,
        share=plan.steps[0],
        url=options.url,
        plan=plan if options.wait else None,
        prometheus=options.prometheus,
        scrape=options.scrape,
    )


def _services(options: argparse.Namespace) -> tuple[str, ...]:
    """Of serving/compose.yaml: those that are named, else all; the retrainer where its policy wants no repository on this machine."""
    from loopline.deploy import compose
    from loopline.retraining import policy

    named: tuple[str, ...] = tuple(options.services or compose.SERVICES)
    if compose.RETRAINER not in named or policy.load(options.policy).where == "github":
        return named
    why = f"no retrainer in a container: {options.policy} says where: here, which needs a clone: `make retrainer`, or where: github"
    if options.services:
        raise LooplineError(why)
    if options.verb == "deploy":
        print(why)
    return tuple(name for name in named if name != compose.RETRAINER)


def _deploy(options: argparse.Namespace) -> int:
    print("\n".join(getattr(_target(options), options.verb)(_bundles(options))))
    return 0


def _verify(options: argparse.Namespace) -> int:
    bundles = _bundles(options)
    wrong = _target(options).verify(bundles)
    print("\n".join(wrong or [f"{len(bundles)} bundles answer as they should"]))
    return 1 if wrong else 0


def _rollback(options: argparse.Namespace) -> int:
    print("\n".join(_target(options).rollback(options.model)))
    return 0


def _bundles(options: argparse.Namespace) -> list[Path]:
    found = options.bundle or sorted(Path("models").glob("*/bundle"))
    if found or (options.target == "kubernetes" and not options.url):  # they are in the image, and nobody asks
        return list(found)
    raise LooplineError("no bundle under models/: run `make repro` first, or name some with --bundle")


def add(rooms: Verbs) -> None:
    """Put this room's verbs into the command line."""
    for name, run, text in (
        ("deploy", _deploy, "put bundles into service, with a canary where something serves already (docs/deploy.md)"),
        ("canary", _deploy, "give a new bundle a share of the traffic"),
        ("verify", _verify, "is what is served what these bundles say? Exits with 1 and what differs"),
        ("rollback", _rollback, "what served before serves again"),
    ):
        made = verb(rooms, name, run, text)
        made.add_argument("--target", choices=("process", "compose", "kubernetes"), default="process")
        if name == "rollback":
            made.add_argument("model", nargs="?", help="default: of the last rollout")
        made.add_argument("--bundle", nargs="+", type=Path, metavar="FOLDER", help="default: models/*/bundle")
        made.add_argument(
            "--rolling", action="store_true", help="replace at once, without a canary; no request is lost"
        )
        made.add_argument(
            "--wait",
            action="store_true",
            help="of a canary in containers or a cluster: until the judge has a verdict; fails unless it is good",
        )
        made.add_argument("--services", nargs="+", metavar="NAME", help="of serving/compose.yaml (default: all)")
        there = made.add_argument_group("of a cluster")
        there.add_argument("--overlay", type=Path, default=OVERLAY, metavar="FOLDER", help=f"default: {OVERLAY}")
        there.add_argument("--image", default="", help="that holds the bundles (default: the overlay's)")
        there.add_argument("--context", default="", help="of kubectl (default: the current one)")
        where = "monitoring/prometheus-operated:9090"
        there.add_argument(
            "--prometheus", default=where, help=f"namespace/service:port, or an address (default: {where})"
        )
        there.add_argument("--url", default="", help="of its gateway, where golden inputs are asked")
        rollout.plan_arguments(made.add_argument_group("of a rollout"))
        monitoring.stack_arguments(made.add_argument_group("of a stack that is started on this machine"))
        made.set_defaults(gateway=True)
