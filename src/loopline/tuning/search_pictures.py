"""Pictures of a search: the figure of each trial, how much each setting matters, and every trial's values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loopline.lib.drawing import BLUE, GREEN, GREY, INK, ORANGE, RED, SOFT, sheet
from loopline.tuning.search import Row

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

COLOURS = {"complete": BLUE, "stopped": GREY, "failed": RED}


def history(path: Path, rows: list[Row], headline: str) -> None:
    """Draw each trial's figure and the best one so far."""
    with sheet(path, 6.4, 3.2) as (figure, (axis,)):
        for state, colour in COLOURS.items():
            points = [
                (row.number, row.outcome.value)
                for row in rows
                if row.outcome.state == state and row.outcome.value is not None
            ]
            if points:
                axis.scatter(*zip(*points, strict=True), s=22, color=colour, label=state, zorder=3)
        for row in rows:
            if row.outcome.value is None:
                axis.axvline(
                    row.number, color=RED, linewidth=0.8, label="failed" if row == _first_failed(rows) else None
                )
        best = [
            row.outcome.value if row.outcome.state == "complete" and row.outcome.value is not None else -np.inf
            for row in rows
        ]
        reached = np.maximum.accumulate(np.array(best))
        axis.step(
            range(len(rows)),
            np.where(np.isfinite(reached), reached, np.nan),
            where="post",
            color=GREEN,
            label="best so far",
        )
        first = rows[0].outcome.value
        if first is not None:
            axis.axhline(first, color=SOFT, linewidth=0.9, linestyle="--", label="params.yaml")
        axis.set(xlabel="trial", ylabel=f"{headline}, validation split")
        axis.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(loc="outside upper left", ncols=5)


def _first_failed(rows: list[Row]) -> Row | None:
    return next((row for row in rows if row.outcome.value is None), None)


def importance(path: Path, importances: Mapping[str, float], headline: str) -> None:
    """Draw how much of the figure's variance each setting explains."""
    keys = sorted(importances, key=lambda key: importances[key])
    with sheet(path, 6.4, 0.9 + 0.3 * len(keys)) as (_, (axis,)):
        axis.barh(keys, [importances[key] for key in keys], color=BLUE, height=0.65)
        for place, key in enumerate(keys):
            axis.text(importances[key], place, f" {importances[key]:.0%}", va="center", color=SOFT, fontsize=8)
        axis.grid(visible=False, axis="y")
        axis.tick_params(axis="y", length=0)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axis.set(xlim=(0, 1.08 * max(importances.values())), title=f"Share of the variance of {headline}")


def parallel(path: Path, rows: list[Row], distributions: Mapping[str, BaseDistribution], headline: str) -> None:
    """Draw a line through the values of each complete trial. The best fifth is orange, trial 0 is black."""
    complete = [row for row in rows if row.outcome.state == "complete"]
    keys = list(distributions)
    figures = np.array([row.outcome.value for row in complete], np.float64)
    bound = np.quantile(figures, 0.8) if len(figures) else 0.0
    with sheet(path, 1.6 + 1.25 * (len(keys) + 1), 3.4) as (figure, (axis,)):
        axis.grid(visible=False)
        low, high = (float(figures.min()), float(figures.max())) if len(figures) else (0.0, 1.0)
        for row in sorted(complete, key=lambda row: (row.number == 0, row.outcome.value)):
            value = row.outcome.value or 0.0
            heights = [_place(distributions[key], row.values[key]) for key in keys]
            heights.append((value - low) / (high - low) if high > low else 0.5)
            colour = INK if row.number == 0 else ORANGE if value >= bound else GREY
            axis.plot(range(len(heights)), heights, color=colour, linewidth=1.6 if colour != GREY else 0.8)
        for place, key in enumerate(keys):
            _axis(axis, place, key, *_ends(distributions[key]))
        _axis(axis, len(keys), headline, f"{low:.4g}", f"{high:.4g}")
        axis.set(xlim=(-0.4, len(keys) + 0.4), ylim=(-0.14, 1.2))
        axis.axis("off")
        figure.suptitle("Complete trials: orange is the best fifth, black is params.yaml", x=0.01, ha="left")


def _axis(axis: Any, place: int, name: str, low: str, high: str) -> None:
    axis.plot([place, place], [0, 1], color=SOFT, linewidth=0.9)
    axis.text(place, 1.12, name.rsplit(".", maxsplit=1)[-1], ha="center", fontsize=8, color=INK)
    axis.text(place, 1.03, high, ha="center", fontsize=7, color=SOFT)
    axis.text(place, -0.1, low, ha="center", fontsize=7, color=SOFT)


def _place(distribution: Any, value: Any) -> float:
    """Where a value lies on its axis, 0 to 1; a value of params.yaml outside the space lies on an end."""
    if hasattr(distribution, "choices"):
        choices = list(distribution.choices)
        return choices.index(value) / (len(choices) - 1) if value in choices else 0.0
    low, high = distribution.low, distribution.high
    if distribution.log:
        low, high, value = np.log(low), np.log(high), np.log(max(value, low))
    return float(np.clip((value - low) / (high - low), 0, 1))


def _ends(distribution: Any) -> tuple[str, str]:
    if hasattr(distribution, "choices"):
        return str(distribution.choices[0]), str(distribution.choices[-1])
    return f"{distribution.low:g}", f"{distribution.high:g}"
