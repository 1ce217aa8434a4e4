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
        doing = DOING[options.verb]
        print(f"{name}: {doing}", file=sys.stderr, flush=True)  # standard output has the result alone
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
        print(f"{decisions.path()}: unreadable line(s) {', '.join(map(str, log.damaged))}", file=sys.stderr)
    return 0


def add(rooms: Verbs) -> None:
    """Put this room's verbs into the command line."""
    release = room(rooms, "release", "the model registry")
    for name, text in {
        "register": "put the bundles in the registry as challengers",
        "promote": "make the challenger champion if it wins on evidence; exits with 2 if it is refused",
        "rollback": "put the champion before this one back",
    }.items():
        made = verb(release, name, _release, text)
        made.add_argument("model", nargs="*", help="default: all")
        if name == "promote":
            made.add_argument("--again", action="store_true", help="even if it was rolled back before")
            made.add_argument("--dry-run", action="store_true", help="say what would be decided, and change nothing")
            made.add_argument(
                "--journal",
                type=Path,
                metavar="FOLDER",
                help="of a challenger that follows an alert: judge it by the newest labelled batch and this journal's traffic",
            )
        if name == "rollback":
            made.add_argument("--reason", default="asked for", help="for the decision log")
    history = verb(release, "history", _history, "every decision, or who was champion at a time, and why")
    history.add_argument("model", nargs="*", help="default: all")
    history.add_argument("--at", metavar="TIME", help="say who was champion then, e.g. 2026-11-21T14:05")
