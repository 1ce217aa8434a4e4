"""What every room of the command line is made with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

JOURNAL = Path(".loopline/journal")  # where it is kept, if nothing else is said
Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def verb(into: Verbs, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    """A verb: what it is called and does, and what runs it."""
    made = into.add_parser(name, help=text, description=text)
    made.set_defaults(run=run, verb=name)
    return made


def room(rooms: Verbs, name: str, text: str) -> Verbs:
    """Verbs under one name: `loopline data list`."""
    return rooms.add_parser(name, help=text, description=text).add_subparsers(required=True, metavar="VERB")


def models() -> list[str]:
    """The names under models: in params.yaml."""
    from loopline import settings

    return list(settings.load().models)
