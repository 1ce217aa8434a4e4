"""What rules are made of, and the words that they share."""

from __future__ import annotations

import re
from dataclasses import dataclass

FRESH = 130  # seconds: servers are scraped every two minutes or more often
SERVED = f"(time() - timestamp(loopline_model_info) < {FRESH})"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Recording:
    """A series that Prometheus computes."""

    name: str
    expr: str


@dataclass(frozen=True)
class AlertRule:
    """An alert. severity: info, notice, warning, critical, or retrain, which the retrainer listens to."""

    name: str
    expr: str
    summary: str
    description: str
    severity: str
    hold: str = "0s"  # the condition's least time: Prometheus' `for`
    keep: str = "0s"  # and after its end: `keep_firing_for`


@dataclass(frozen=True)
class RuleGroup:
    """Rules that are evaluated one after the other, every `interval`."""

    name: str
    interval: str
    recordings: tuple[Recording, ...]
    alerts: tuple[AlertRule, ...]


def seconds(duration: str) -> int:
    """Of 90s, 5m, 1h, 2d. Raises ValueError on anything else."""
    if not (match := re.fullmatch(r"(\d+)([smhd])", duration)) or match[1] == "0":
        raise ValueError(f"{duration!r} is no duration: write 90s, 5m, 1h or 2d")
    return int(match[1]) * UNITS[match[2]]


def duration(count: float) -> str:
    """Of seconds, as Prometheus writes them, in the largest unit that gives a whole number."""
    whole = max(1, round(count))
    return next((f"{whole // UNITS[u]}{u}" for u in "dhm" if whole % UNITS[u] == 0), f"{whole}s")


def of_model(series: str) -> str:
    """A figure of the bundle: all replicas export the same."""
    return f"max by (model, version) ({series})"


def of_signal(series: str) -> str:
    """A figure of a signal in the bundle's reference."""
    return f"max by (model, version, signal) ({series})"


def served(expression: str) -> str:
    """The expression, which has the labels model and version, for the versions that are served now.

    A counter's increase outlives its server by the length of its range, and all series of a server that ended together with
    Prometheus outlive it by five minutes. So a server must have exported the version, and not long ago.
    """
    return f"({expression}) and on (model, version) {SERVED}"


def of_served_model(expression: str) -> str:
    """The expression, which has the label model, for the models that are served now in whatever version."""
    return f"({expression}) and on (model) {SERVED}"
