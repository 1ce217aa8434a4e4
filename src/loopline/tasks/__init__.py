"""What differs between problems, a folder a task. Beside the folders: what tasks share, numpy only, so that the server has it too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopline.tasks.folders import part

if TYPE_CHECKING:
    from loopline.tasks.base import Task


def find(name: str) -> Task:
    """Return the task: `TASK` in its task.py. Raises LooplineError where there is none of this name."""
    task: Task = part(name, "task").TASK
    return task
