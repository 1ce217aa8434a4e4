"""What happened in a drill, second by second: events as they are told, and figures as Prometheus had them."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TextIO

Kind = Literal["act", "note", "alert", "decision", "good", "bad"]
MARKS: dict[str, tuple[str, str]] = {  # a sign and a colour, as terminals have it
    "act": ("▶", "1"),
    "note": ("·", "2"),
    "alert": ("!", "33"),
    "decision": ("→", "36"),
    "good": ("✓", "32"),
    "bad": ("✗", "31"),
}


@dataclass(frozen=True)
class Event:
    """at: seconds since the drill began. short: for the picture; empty where it is not to be there."""

    at: float
    kind: Kind
    text: str
    short: str = ""


@dataclass(frozen=True)
class Figure:
    """at: seconds. score: of drift, by version. share: percent of the challenger. firing: names of the drift alerts."""

    at: float
    score: dict[str, float]
    share: int
    firing: tuple[str, ...]


@dataclass
class DrillRecord:
    """Grows while the drill goes on. began: time.monotonic()."""

    began: float = field(default_factory=time.monotonic)
    events: list[Event] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    out: TextIO = field(default_factory=lambda: sys.stdout)

    def now(self) -> float:
        """Seconds since the begin."""
        return time.monotonic() - self.began

    def say(self, kind: Kind, text: str, short: str = "") -> None:
        """Keep an event and print it."""
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
        """Plain JSON types."""
        return {"events": list(map(asdict, self.events)), "figures": list(map(asdict, self.figures))}
