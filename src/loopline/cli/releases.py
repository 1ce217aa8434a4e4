"""The model registry's verbs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from loopline.cli.verbs import Verbs, models, room, verb

DOING = {
    "register": "puts the bundle in the registry (MLflow takes some seconds to start)",
    "promote": "fetches challenger and champion, asks both for the test split, and weighs them (up to some minutes)",
    "rollback": "fetches and verifies the champion before this one",
}


def _release(options: argparse.Namespace) -> int:
    from loopline.release import registry

    code = 0
    for name in options.model or models():
        print(f"{name}: {DOING[options.verb]}", file=sys.stderr, flush=True)  # standard output has only the result
        if options.verb == "register":
            print(registry.register(Path("models") / name / "bundle"))
        elif options.verb == "promote":
            decision = registry.promote(name, again=options.again, dry_run=options.dry_run, journal=options.journal)
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
        lines = ", ".join(map(str, log.damaged))
        print(f"{decisions.path()}: cannot read line(s) {lines}; the decisions in them are left out", file=sys.stderr)
    return 0


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    release = room(verbs, "release", "register, promote and roll back models in the model registry")
    for name, text in {
        "register": "put the bundles in the registry as challengers",
        "promote": "make the challenger champion if it wins on evidence; exits with 2 if it is refused",
        "rollback": "make the previous champion the champion again",
    }.items():
        command = verb(release, name, _release, text)
        command.add_argument("model", nargs="*", help="names of models (default: all)")
        if name == "promote":
            command.add_argument("--again", action="store_true", help="allow a challenger that was rolled back before")
            command.add_argument("--dry-run", action="store_true", help="print the decision and change nothing")
            command.add_argument(
                "--journal",
                type=Path,
                metavar="FOLDER",
                help="journal whose traffic, with the newest labelled batch, judges a challenger that follows an alert "
                "(default: judge by the test split alone)",
            )
        if name == "rollback":
            command.add_argument("--reason", default="asked for", help="reason for the decision log")
    history = verb(release, "history", _history, "list all decisions and their reasons, or the champion at a time")
    history.add_argument("model", nargs="*", help="names of models (default: all)")
    history.add_argument(
        "--at", metavar="TIME", help="time of which to show the champion, e.g. 2026-11-21T14:05 (default: list all)"
    )
