"""Helpers that every module of the command line uses to define its verbs."""

from __future__ import annotations

import argparse
import pkgutil
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from loopline.lib import options

JOURNAL = Path(".loopline/journal")  # the journal's folder by default
Verbs: TypeAlias = "argparse._SubParsersAction[VerbParser]"
T = TypeVar("T")


class HelpFormatter(argparse.HelpFormatter):
    """Adds an option's default to its help text, unless the text tells it already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = isinstance(action.default, bool | None) or action.default in ("", [], argparse.SUPPRESS)
        return action.help if silent or "default" in str(action.help) else f"{action.help} (default: %(default)s)"


class VerbParser(argparse.ArgumentParser):
    """Adds the options of dataclasses when it parses or shows its help, since their modules may import heavy libraries."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._waiting: list[tuple[argparse._ActionsContainer, str, tuple[str, ...]]] = []

    def options_of(
        self, path: str, *, group: argparse._ActionsContainer | None = None, without: tuple[str, ...] = ()
    ) -> None:
        """Add the fields of a dataclass that are declared as options. path: "module:Class". without: fields to leave out."""
        self._waiting.append((group or self, path, without))

    def fill(self) -> None:
        """Add the options that wait."""
        while self._waiting:
            group, path, without = self._waiting.pop(0)
            kind = pkgutil.resolve_name(path)
            hints = get_type_hints(kind)
            for each in fields(kind):
                if (declared := each.metadata.get(options.KEY)) and each.name not in without:
                    _add(group, each, hints[each.name], declared)

    def parse_known_args(self, *arguments: Any, **keywords: Any) -> Any:
        """As of any parser, with all options."""
        self.fill()
        return super().parse_known_args(*arguments, **keywords)

    def format_help(self) -> str:
        """As of any parser, with all options."""
        self.fill()
        return super().format_help()


def _add(group: argparse._ActionsContainer, declared: Field[Any], hint: Any, option: options.CommandOption) -> None:
    place = _place(declared)
    flag = "--" + place.replace("_", "-")
    if hint is bool:
        group.add_argument(flag, dest=place, action="store_true", help=option.text)
        return
    kind: Any
    choices: Any
    if get_origin(hint) is Literal:
        kind, choices = str, get_args(hint)
    else:
        kind, choices = next(part for part in (get_args(hint) or (hint,)) if part is not type(None)), option.choices
    more: dict[str, Any] = {"metavar": option.metavar} if option.metavar else {}
    group.add_argument(flag, dest=place, type=kind, default=declared.default, choices=choices, help=option.text, **more)


def _place(declared: Field[Any]) -> str:
    """Where the parser puts an option's value: two dataclasses of one verb may have fields of one name."""
    return declared.metadata[options.KEY].name.replace("-", "_") or declared.name


def chosen(kind: type[T], given: argparse.Namespace, **others: Any) -> T:
    """Make the dataclass from the options that its fields declare, and from these other values."""
    declared = [each for each in fields(kind) if options.KEY in each.metadata]  # type: ignore[arg-type]
    values = {each.name: getattr(given, _place(each)) for each in declared if _place(each) in given}
    return kind(**values | others)


def verb(verbs: Verbs, name: str, run: Callable[[argparse.Namespace], int], text: str) -> VerbParser:
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
