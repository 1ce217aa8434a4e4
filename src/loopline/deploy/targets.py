"""The verbs that every deployment target has: `make deploy TARGET=...`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Target(Protocol):
    """A place that serves bundles. Each verb returns lines that report what it did, and raises LooplineError if it fails."""

    def deploy(self, bundles: Sequence[Path]) -> list[str]:
        """Put these bundles into service and verify them. If the verification fails, the former bundles serve again."""

    def canary(self, bundles: Sequence[Path]) -> list[str]:
        """Give these bundles a share of the traffic. `deploy` of the same bundles promotes them, `rollback` ends the canary."""

    def verify(self, bundles: Sequence[Path]) -> list[str]:
        """Return a line for each difference between what is served and these bundles; empty if there is none."""

    def rollback(self, model: str | None) -> list[str]:
        """Let the former bundles serve again. model: roll back only this model, if the target can do that."""
