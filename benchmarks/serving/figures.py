"""A run's figures as medians over its rounds, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from statistics import median
from typing import Any

from benchmarks.serving.servers import KINDS

LOOPLINE, FASTAPI = KINDS[0].name, KINDS[1].name  # FastAPI with raw bytes is the peer that goals compare with
MODELS = ("classifier", "detector")
PEAKS = {"peer": "the fastest peer's peak", "own": "Loopline's peak"}  # an open loop's rate is a share of one of them
SHARES = (0.5, 0.8)
FLOODS = (4, 10)  # times the server's own peak
DEADLINE = "250"  # ms from when a request was due; a later answer or refusal in a flood is of no use
NORMAL = (
    5.0  # ms: a slice after a flood is normal if its median is at most this, or three times the median before the flood
)
SLICE = 0.1  # seconds of a slice of the sender's time line
Figures = dict[str, Any]


class Medians:
    """A run's figures as medians over its rounds. raw: the rows of all rounds by key."""

    def __init__(self, results: Figures) -> None:
        """results: what `__main__` wrote."""
        self.raw: dict[str, list[Any]] = results["measured"]
        self.names = [kind.name for kind in KINDS if any(key.startswith(f"{kind.name}/start/") for key in self.raw)]
        self.models = [model for model in MODELS if f"engine/{model}" in self.raw]

    def __call__(self, key: str, field: str | Callable[[Any], float] = "") -> float | None:
        """The median, or None where it was not measured. field: of each row, or a function of a row; empty: the row itself."""
        if not (rows := self.raw.get(key)):
            return None
        if callable(field):
            return float(median(field(row) for row in rows))
        return float(median(row[field] if field else row for row in rows))

    def limit(self, model: str) -> float:
        """The engine's answers a second without a server, at its best batch; 0 where it was not measured."""
        return max(self(f"engine/{model}", "best") or 0.0, self(f"engine/{model}", "single") or 0.0)


def unanswered(phase: Figures) -> float:
    """Requests a second of an open loop that were refused, failed or never sent."""
    return float(phase["refused"] + phase["failed"])


def scheduled_p50(phase: Figures) -> float:
    """The median latency of an open loop in ms; infinite if half of the requests or more got no answer."""
    return float(phase["p50"]) if unanswered(phase) < 0.5 * phase["offered"] else inf


def scheduled_p99(phase: Figures) -> float:
    """The 99th percentile in the same way, so that a server gains nothing by refusing."""
    return float(phase["p99"]) if unanswered(phase) < 0.01 * phase["offered"] else inf


def load_sent(row: Figures) -> float:
    """What the sender managed to send in a flood, as a multiple of the server's peak."""
    return float((row["flood"]["offered"] - row["flood"]["unsent"]) / row["peak"])


def goodput(row: Figures) -> float:
    """Answers in a flood before the deadline, as a share of the server's peak."""
    return float(row["flood"]["within"][DEADLINE] / row["peak"])


def refused_in_time(row: Figures) -> float:
    """The share of a flood's refusals that came before the deadline; 1 where none came."""
    flood = row["flood"]
    return float(flood["refused_within"][DEADLINE] / flood["refused"]) if flood["refused"] else 1.0


def normal_after(row: Figures) -> float:
    """Seconds from a flood's end to the first slice in which all are answered and as fast as before; infinite if none was."""
    usual = max(NORMAL, 3 * float(row["before"]["p50"]))
    for place, (answered, others, middle) in enumerate(row["after"]["slices"]):
        if answered and not others and middle <= usual:
            return place * SLICE
    return inf


def number(value: float | None, digits: int = 0) -> str:
    """With commas between thousands; a dash for what was not measured."""
    if value is None:
        return "–"
    return "∞" if value == inf else f"{value:,.{digits}f}"


def with_unit(value: float, unit: str) -> str:
    """A value with three digits, or with all of those before the point, and its unit. Infinite: it did not end while measured."""
    if value == inf:
        return "longer than measured"
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{float(f'{value:.3g}'):g}"
    return f"{digits} {unit}".rstrip()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)) + "\n"
