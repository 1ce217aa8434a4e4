"""docs/benchmarks/*.json: what each machine reached of the goals, one file for each kind of processor.

A file has neither times nor paths, so that a new run on the same kind of machine changes only the values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from math import inf
from pathlib import Path

from benchmarks.serving import goals
from benchmarks.serving.figures import Figures, Medians, table
from benchmarks.serving.goals import GOALS

FIELDS = ("processor", "features", "cores", "versions")


def machine(results: Figures) -> Figures:
    """A run's machine, the versions that it ran, and the value of each goal that it measured. results: of `__main__`."""
    return {field: results[field] for field in FIELDS} | {"goals": goals.values(Medians(results))}


def slug(machine: Figures) -> str:
    """The name of a machine's file: its processor and features, with only a-z, 0-9 and hyphens."""
    words = " ".join([machine["processor"], *machine["features"]])
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def write(folder: Path, machine: Figures) -> None:
    """Replace the machine's file. A time without an end becomes null, since JSON has no infinity."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {key: None if value == inf else value for key, value in machine["goals"].items()}
    text = json.dumps(machine | {"goals": values}, indent=1, allow_nan=False) + "\n"
    (folder / f"{slug(machine)}.json").write_text(text, encoding="utf-8")


def others(folder: Path, machine: Figures) -> list[Figures]:
    """The machines with a file in the folder, by its name, without this machine."""
    machines = []
    for path in sorted(folder.glob("*.json")):
        if path.stem != slug(machine):
            other = json.loads(path.read_text(encoding="utf-8"))
            values = {key: inf if value is None else value for key, value in other["goals"].items()}
            machines.append(other | {"goals": values})
    return machines


def goals_table(machines: Sequence[Figures]) -> str:
    """All goals that a machine has measured, with a column for each machine."""
    rows = []
    for goal in GOALS:
        values = [machine["goals"].get(goal.key) for machine in machines]
        cells = ["–" if value is None else goal.written(value) for value in values]
        marked = [
            cell if value is None or goal.met(value) else f"**{cell}, no**"
            for cell, value in zip(cells, values, strict=True)
        ]
        if any(value is not None for value in values):
            rows.append([f"{goal.where}: {goal.quantity}", str(goal), *marked])
    return table(["what is measured", "goal", *map(title, machines)], rows)


def title(machine: Figures) -> str:
    """The processor with its features."""
    return f"{machine['processor']} ({', '.join(machine['features'])})"


def setting(machine: Figures) -> str:
    """The cores and versions of a run."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['cores']} cores; {versions}"
