"""The lock of a rollout. One controller holds it; a manual command leaves a note, and the controller then releases the lock."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from loopline.errors import LooplineError
from loopline.lib import locks, processes
from loopline.lib.processes import Process
from loopline.rollout.evidence import ModelInput
from loopline.rollout.state import RolloutState, read


class TakenOverError(Exception):
    """Raised in a controller when a manual command asks for the lock. Only the controller catches it."""


class ControllerLock:
    """The lock and the notes in a rollout's folder."""

    def __init__(self, folder: Path) -> None:
        """folder: the rollout's, which holds `state.json` too."""
        self.folder = folder

    @contextmanager
    def held(self, *, wait: bool = True) -> Iterator[None]:
        """Hold the lock during the block. Raises BlockingIOError if another process holds it and wait is False."""
        with locks.held(self.folder / "controller.lock", wait=wait):
            yield

    @contextmanager
    def held_or_joined(self, model: str, version: str) -> Iterator[RolloutState | None]:
        """Hold the lock and yield None, or yield the rollout of this bundle that another process carries out now.

        Raises LooplineError if another process carries out the rollout of another bundle.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(self.held(wait=False))
            except BlockingIOError as error:
                present = read(self.folder)
                if present and (present.model, present.challenger) == (model, version):
                    yield present
                    return
                raise LooplineError(
                    f"a rollout is under way: {present or 'it is just beginning'}\n"
                    "wait until it ends, or end it with `loopline rollout promote` or `rollback`"
                ) from error
            yield None

    @contextmanager
    def taken_over(self, model: str) -> Iterator[RolloutState]:
        """Leave a note, wait until the controller releases the lock, and yield the state. Raises LooplineError if there is
        none."""
        import psutil

        note = self.folder / f"asked.{os.getpid()}.{psutil.Process().create_time()!r}"
        self.folder.mkdir(parents=True, exist_ok=True)
        note.touch()
        try:
            with self.held():
                state = read(self.folder)
                if state is None or state.model != model:
                    raise LooplineError(f"there was no rollout of {model}")
                yield state
        finally:
            note.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise TakenOverError if a manual command waits for the lock.

        The note of a killed command does not count, even if another process has its number now.
        """
        notes = (note.name.split(".", 2) for note in self.folder.glob("asked.*.*"))
        if any(processes.alive(Process("", int(pid), float(created), "")) for _, pid, created in notes):
            raise TakenOverError

    def checked(self, inputs: Sequence[ModelInput]) -> Iterator[ModelInput]:
        """Yield the inputs, with a `check` at the start and before each."""
        self.check()
        for content in inputs:
            self.check()
            yield content
