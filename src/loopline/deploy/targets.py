"""What every place that bundles are put into service on can do: `make deploy TARGET=...`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Target(Protocol):
    """A place. What it does is said by the lines that its verbs return; each raises LooplineError where it cannot be done."""

    def deploy(self, bundles: Sequence[Path]) -> list[str]:
        """Put these into service. What is verified and wrong is taken back."""

    def canary(self, bundles: Sequence[Path]) -> list[str]:
        """Give these a share of the traffic; `deploy` of the same goes on from there, `rollback` ends it."""

    def verify(self, bundles: Sequence[Path]) -> list[str]:
        """What is served otherwise than these bundles say; empty if nothing."""

    def rollback(self, model: str | None) -> list[str]:
        """What served before serves again. model: where one can be taken back alone."""
