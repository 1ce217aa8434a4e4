"""The verbs that put bundles into service, the same wherever that is: deploy, canary, verify, rollback."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from loopline.cli import delivery, monitoring
from loopline.cli.verbs import Verbs, verb
from loopline.errors import LooplineError

if TYPE_CHECKING:
    from loopline.delivery.targets import Target


def _target(options: argparse.Namespace) -> Target:
    """Where to."""
    if options.target == "process":
        from loopline.delivery import process

        return process.Processes(
            options=monitoring.stack_options(options),
            controller=delivery.controller(options),
            plan=None if options.rolling else delivery.plan(options),
            again=options.again,
        )
    raise LooplineError(f"{options.target} is no target yet")


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
    if found := options.bundle or sorted(Path("models").glob("*/bundle")):
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
        delivery.plan_arguments(made.add_argument_group("of a rollout"))
        monitoring.stack_arguments(made.add_argument_group("of a stack that is started on this machine"))
        made.set_defaults(gateway=True)
