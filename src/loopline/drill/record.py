"""The record of a drill: its events, and figures from Prometheus."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TextIO

Kind = Literal["act", "note", "alert", "decision", "good", "bad"]
MARKS: dict[str, tuple[str, str]] = {  # kind -> a sign, and the ANSI code of a terminal colour
    "act": ("▶", "1"),
    "note": ("·", "2"),
    "alert": ("!", "33"),
    "decision": ("→", "36"),
    "good": ("✓", "32"),
    "bad": ("✗", "31"),
}


@dataclass(frozen=True)
class Event:
    """An event. at: seconds since the drill began. short: its name in the picture; empty leaves it out."""

    at: float
    kind: Kind
    text: str
    short: str = ""


@dataclass(frozen=True)
class Figure:
    """Figures at one moment.

    at: seconds since the drill began. score: version -> drift score. share: the challenger's share of the traffic in percent.
    firing: names of the drift alerts that fire.
    """

    at: float
    score: dict[str, float]
    share: int
    firing: tuple[str, ...]


@dataclass
class DrillRecord:
    """The events and figures of a drill. began: time.monotonic() at its start. out: where events are printed."""

    began: float = field(default_factory=time.monotonic)
    events: list[Event] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    out: TextIO = field(default_factory=lambda: sys.stdout)

    def now(self) -> float:
        """Seconds since the drill began."""
        return time.monotonic() - self.began

    def say(self, kind: Kind, text: str, short: str = "") -> None:
        """Record an event and print it."""
        event = Event(self.now(), kind, text, short)
        self.events.append(event)
        sign, colour = MARKS[kind]
        clock = f"{int(event.at) // 60:02}:{int(event.at) % 60:02}"
        first, *more = text.splitlines() or [""]
        line = "\n".join([f"{clock} {sign} {first}", *(f"          {words.strip()}" for words in more)])
        if self.out.isatty():
            line = f"\033[{colour}m{line}\033[0m"
        gap = "\n" if kind == "act" and len(self.events) > 1 else ""
        print(gap + line, file=self.out, flush=True)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON types."""
        return {"events": list(map(asdict, self.events)), "figures": list(map(asdict, self.figures))}
