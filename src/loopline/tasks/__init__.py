"""Tasks, one folder each. The modules beside the folders are shared and do without torch, because the server imports them too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopline.tasks.plugins import part

if TYPE_CHECKING:
    from loopline.tasks.base import Task


def find(name: str) -> Task:
    """Return the task `name`, the object `TASK` of its task.py. Raises LooplineError if no task has this name."""
    task: Task = part(name, "task").TASK
    return task
