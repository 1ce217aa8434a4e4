"""Waiting for a condition by asking repeatedly."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(ask: Callable[[], T], seconds: float, every: float = 0.05) -> T:
    """Call `ask`, at least once, until its answer is true or `seconds` have passed; return the last answer.

    every: seconds between two calls.
    """
    end = time.monotonic() + seconds
    while not (answer := ask()) and time.monotonic() < end:
        time.sleep(every)
    return answer
