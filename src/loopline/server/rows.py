"""Rows of a batch on their way from a model to what counts their drift signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from loopline.lib.arrays import Arrays


class DecodedRows(NamedTuple):
    """Rows as the graph took and gave them. The rest is known of what came by the route for people."""

    inputs: Arrays
    outputs: Arrays
    originals: Sequence[bytes | str] | None = None
    sizes: NDArray[Any] | None = None
    answers: Sequence[Any] = ()
    identity: str = ""  # of the request
    items: int = 0  # that the request had

    def first(self, rows: int) -> DecodedRows:
        """Its first rows."""
        return self._replace(
            inputs={name: array[:rows] for name, array in self.inputs.items()},
            outputs={name: array[:rows] for name, array in self.outputs.items()},
            originals=None if self.originals is None else self.originals[:rows],
            sizes=None if self.sizes is None else self.sizes[:rows],
            answers=self.answers[:rows],
        )


class RowSink(Protocol):
    """What takes some of a model's rows."""

    def open(self) -> bool:
        """Tell whether it takes rows now. Called for each batch, so it costs a look at the clock."""

    def take(self, taken: DecodedRows) -> None:
        """Take rows."""
