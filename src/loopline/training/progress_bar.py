"""Show the progress of a training: a bar if standard error is a terminal, else a line for each epoch with the time left.

While the training runs, its last finished epoch is also in `.loopline/progress/NAME`, for `loopline status`.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path

from loopline.lib import files

FOLDER = Path(".loopline/progress")


class Progress:
    """Progress of one training, from epoch `done` to at most `epochs`, in `steps` steps each."""

    def __init__(self, name: str, *, epochs: int, steps: int, done: int, silent: bool = False) -> None:
        """Start the bar or the clock. name: the model's. silent: another process shows it."""
        from tqdm import tqdm

        self._name, self._epochs, self._done = name, epochs, done
        self._start = time.monotonic()
        self._silent = silent
        self._note("")  # a killed training may have left its epoch
        total, initial = epochs * steps, done * steps
        self._bar = tqdm(
            total=total, initial=initial, desc=f"train {name}", unit="step", disable=silent or not _terminal()
        )

    def step(self) -> None:
        """Count one step."""
        self._bar.update()

    def epoch(self, number: int, figures: dict[str, float]) -> None:
        """Show the figures of the finished epoch `number`, counted from 1."""
        text = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
        self._note(f"epoch {number} of {self._epochs}")
        if not self._bar.disable:
            self._bar.set_postfix_str(f"epoch {number}, {text}")
            return
        remaining = (time.monotonic() - self._start) / (number - self._done) * (self._epochs - number)
        print(f"{self._name}: epoch {number} of {self._epochs}, {text}, {duration(remaining)} left", flush=True)  # noqa: T201

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
        self._note("")

    def _note(self, text: str) -> None:
        if self._silent:
            return
        with suppress(OSError):  # a full disk must not end a training here
            files.write(FOLDER / self._name, text)


def _terminal() -> bool:
    return sys.stderr.isatty()


def duration(seconds: float) -> str:
    """Return a text like `41 s`, `3 min 05 s` or `2 h 10 min`."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02} s"
    return f"{total // 3600} h {total % 3600 // 60:02} min"
