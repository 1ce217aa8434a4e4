"""Helpers that every module of the command line uses to define its verbs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

JOURNAL = Path(".loopline/journal")  # the journal's folder by default
Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class HelpFormatter(argparse.HelpFormatter):
    """Adds an option's default to its help text, unless the text tells it already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = isinstance(action.default, bool | None) or action.default in ("", [], argparse.SUPPRESS)
        return action.help if silent or "default" in str(action.help) else f"{action.help} (default: %(default)s)"


def verb(verbs: Verbs, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    """Add the verb `name` to `verbs` and return its parser. run: takes the options, returns the exit code. text: its help."""
    command = verbs.add_parser(name, help=text, description=text, formatter_class=HelpFormatter)
    command.set_defaults(run=run, verb=name)
    return command


def room(verbs: Verbs, name: str, text: str) -> Verbs:
    """Add a group of verbs under one name, such as `data` in `loopline data list`, and return the group."""
    return verbs.add_parser(name, help=text, description=text).add_subparsers(required=True, metavar="VERB")


def models() -> list[str]:
    """Return the names under models: in params.yaml."""
    from loopline import settings

    return list(settings.load().models)
