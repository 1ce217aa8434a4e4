"""The folder of a task: one of those beside this module, or one that another package brings by an entry point."""

from __future__ import annotations

import functools
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from loopline.errors import LooplineError

GROUP = "loopline.tasks"  # the entry points by which a package brings tasks of its own: NAME = "package.of.the.task"
BUILT_IN = tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/task.py")))


@functools.cache
def part(name: str, module: Literal["task", "parameters", "training", "evaluation"]) -> Any:
    """Import a module of a task's folder, see `base`. Raises LooplineError where there is no task of this name."""
    if name in BUILT_IN:
        return import_module(f"{GROUP}.{name}.{module}")
    brought = {point.name: point.value for point in entry_points(group=GROUP)}
    if name not in brought:
        raise LooplineError(
            f"no task {name!r}: there are {', '.join((*BUILT_IN, *sorted(brought)))}; docs/extend.md says how to bring one"
        )
    return import_module(f"{brought[name]}.{module}")
