"""A run's figures as medians over its rounds, and how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.serving.servers import KINDS

OURS = KINDS[0].name
MODELS = ("classifier", "detector")
DEADLINE = "250"  # ms, of an answer in a flood
NORMAL = 5.0  # ms, or three times what was usual: the median of a slice when all is well again
Figures = dict[str, Any]


class Medians:
    """A run's figures as medians over its rounds."""

    def __init__(self, results: Figures) -> None:
        """results: what `__main__` wrote."""
        self.results, self.raw = results, results["closed"]
        self.names = [kind.name for kind in KINDS if f"{kind.name}/start" in self.raw]
        self.models = [model for model in MODELS if f"engine/{model}" in self.raw]

    def __call__(self, key: str, field: str = "") -> float | None:
        """The median, or None where it was not measured."""
        if not (rows := self.raw.get(key)):
            return None
        return float(median(row[field] if field else row for row in rows))

    def limit(self, model: str) -> float:
        """The most that the engine alone does."""
        return max(self(f"engine/{model}", "best") or 0.0, self(f"engine/{model}", "one") or 0.0)


def number(value: float | None, digits: int = 0) -> str:
    """With thousands apart; a dash for what was not measured."""
    return "–" if value is None else f"{value:,.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def normal_after(flood: Figures) -> float | None:
    """Seconds from the end of a flood to the first slice that is as before: all answered, as fast; None if it never came."""
    usual = max(NORMAL, 3 * float(flood["before"]["p50"]))
    for place, (answered, others, middle) in enumerate(flood["after"]["slices"]):
        if answered and not others and middle <= usual:
            return place * 0.1
    return None
