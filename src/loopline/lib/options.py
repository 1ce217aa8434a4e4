"""Fields of dataclasses that are options of the command line. Each is declared once, with its help text, where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

KEY = "option"  # of a field's metadata


@dataclass(frozen=True)
class CommandOption:
    """What the command line says of a field. name: of the option without dashes; empty: the field's."""

    text: str
    name: str = ""
    metavar: str | None = None
    choices: Sequence[Any] | None = None


def option(
    default: Any, text: str, *, name: str = "", metavar: str | None = None, choices: Sequence[Any] | None = None
) -> Any:
    """Return a field with this default that is an option too; its type is the field's annotation."""
    return field(default=default, metadata={KEY: CommandOption(text, name, metavar, choices)})
