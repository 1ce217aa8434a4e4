"""How the reading of requests and the models share the cores by time.

While a full batch waits, more requests are of no use to the models, so reading gets `READING` of the time. Otherwise it goes on
until a batch is full or `BURST_SECONDS` are over.
"""

from __future__ import annotations

READING = 0.15  # share of the time in which requests are read while a full batch waits
BURST_SECONDS = 0.002  # longest reading without a look at the queue
PRESSED = 0.9  # share of a request's time after which its answer would come too late


class ReadingBudget:
    """The time for reading, in turns of the event loop. patience: seconds in which the last request wanted its answer."""

    def __init__(self) -> None:
        """Start without credit."""
        self.patience = 1.0
        self.credit = 0.0  # seconds of reading that the models have earned
        self.extra = False  # whether a full batch waited at the last look in this turn
        self.extra_since = 0.0  # seconds of reading in this turn before that

    def hungry(self, spent: float, *, full: bool) -> bool:
        """Whether more requests should be read. spent: seconds of reading in this turn. full: whether a full batch waits."""
        if not (full and self.extra):
            self.extra_since = spent
        self.extra = full
        return spent - self.extra_since < self.credit if full else spent < BURST_SECONDS

    def newest(self, waited: float, *, full: bool) -> bool:
        """Whether the newest request should be read next, not the oldest, which has waited for `waited` seconds.

        If the oldest requests are nearly late, the models live on the newest. What reading gets while a full batch waits is
        spent on the oldest, which are refused, or answered if the pressure is over.
        """
        return not full and waited > PRESSED * self.patience

    def end_turn(self, spent: float) -> None:
        """Pay for this turn's reading while a full batch waited."""
        if self.extra:
            self.credit = max(self.credit - (spent - self.extra_since), -BURST_SECONDS)
        self.extra = False

    def earn(self, seconds: float) -> None:
        """Earn reading for so many seconds of the models' work and of answering."""
        self.credit = min(self.credit + seconds * READING / (1 - READING), BURST_SECONDS)
