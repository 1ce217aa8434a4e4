"""Write what a search found: the table of trials, a page in Markdown, and pictures."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from loopline.lib import files
from loopline.tuning import search_pictures
from loopline.tuning.comparison import Comparison
from loopline.tuning.search import Row, Search, table

LINES = 8  # trials that the page lists


def command(name: str, row: Row) -> str:
    """The command that trains the model with the trial's values, through every gate."""
    settings = [f"-S {shlex.quote(f'models.{name}.{key}={_yaml(value)}')}" for key, value in row.values.items()]
    return " ".join([f"dvc exp run package@{name}", *settings])


def _yaml(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text: str = yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
    return text


def summary(search: Search, verdict: Comparison | None) -> str:
    """What was found, and what to do next."""
    best = search.best()
    assert best
    if best.number == 0:
        return "no trial was better than params.yaml"
    judged = verdict.sentence() if verdict else f"the training with params.yaml failed: {search.rows[0].outcome.reason}"
    return (
        f"trial {best.number} is the best; {judged}\n"
        f"To train with its values, through every gate:\n  {command(search.name, best)}"
    )


def write(folder: Path, search: Search, verdict: Comparison | None) -> None:
    """Write trials.csv, report.md and the pictures. verdict: None if the first trial is the best."""
    rows, best, headline = search.rows, search.best(), search.headline
    assert best
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / "trials.csv", table(rows))
    search_pictures.history(folder / "history.png", rows, headline)
    importances = search.importances()
    if importances:
        search_pictures.importance(folder / "importance.png", importances, headline)
    search_pictures.parallel(folder / "parallel.png", rows, search.distributions, headline)
    files.write(folder / "report.md", _page(search.name, rows, best, verdict, headline, bool(importances)))


def _page(name: str, rows: list[Row], best: Row, verdict: Comparison | None, headline: str, importance: bool) -> str:
    states = {state: sum(row.outcome.state == state for row in rows) for state in ("complete", "stopped", "failed")}
    counts = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    complete = sorted(
        (row for row in rows if row.outcome.state == "complete"), key=lambda row: -(row.outcome.value or 0)
    )
    keys = list(rows[0].values)
    shown = complete[:LINES] if rows[0] in complete[:LINES] else [*complete[: LINES - 1], rows[0]]
    lines = [
        f"# Search for better settings of {name}",
        "",
        f"{len(rows)} trials: {counts}. Trial 0 has the values of params.yaml. The figure is the {headline} on the validation split.",
        "",
        f"| trial | {headline} | epoch | {' | '.join(keys)} |",
        f"|{'---|' * (len(keys) + 3)}",
        *(
            f"| {row.number} | {_value(row)} | {row.outcome.epoch} | {' | '.join(_yaml(row.values[key]) for key in keys)} |"
            for row in shown
        ),
        "",
    ]
    if best.number == 0:
        lines += ["**No trial was better than params.yaml.**", ""]
    else:
        judged = [f"**Trial {best.number}: {verdict.sentence()}.**", ""] if verdict else []
        lines += [*judged, "To train with its values, through every gate:", "", "```", command(name, best), "```", ""]
    lines += ["![The figure of each trial](history.png)", ""]
    lines += ["![How much each setting matters](importance.png)", ""] if importance else []
    lines += ["![Every trial's values](parallel.png)", ""]
    return "\n".join(lines)


def _value(row: Row) -> str:
    return f"{row.outcome.value:.4f}" if row.outcome.value is not None else "–"
