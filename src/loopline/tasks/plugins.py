"""Find the folder of a task: beside this module, or in another package that names it by an entry point."""

from __future__ import annotations

import functools
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from loopline.errors import LooplineError

GROUP = "loopline.tasks"  # entry points by which other packages add tasks: NAME = "package.of.the.task"
BUILT_IN = tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/task.py")))


def folder_elsewhere(name: str) -> Path | None:
    """Return the folder of a task that another package brings, None for a task of this package. Raises as `part` does."""
    return None if name in BUILT_IN else Path(part(name, "task").__file__).parent


@functools.cache
def part(name: str, module: Literal["task", "parameters", "training", "evaluation"]) -> Any:
    """Import a module of a task's folder, see `base`. Raises LooplineError if no task has this name."""
    if name in BUILT_IN:
        return import_module(f"{GROUP}.{name}.{module}")
    from importlib.metadata import entry_points  # slow to import, and not needed for a built-in task

    installed = {point.name: point.value for point in entry_points(group=GROUP)}
    if name not in installed:
        raise LooplineError(
            f"no task {name!r}: there are {', '.join((*BUILT_IN, *sorted(installed)))}. docs/extend.md says how to add one"
        )
    return import_module(f"{installed[name]}.{module}")
