"""Rows of a batch that a model hands to the counter of drift signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from loopline.lib.arrays import Arrays


class DecodedRows(NamedTuple):
    """The graph's inputs and outputs of some rows. The other fields are set only for requests of the predict route."""

    inputs: Arrays
    outputs: Arrays
    originals: Sequence[bytes | str] | None = None
    sizes: NDArray[Any] | None = None
    answers: Sequence[Any] = ()
    identity: str = ""  # the request's id
    items: int = 0  # number of items in the request

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(next(iter(self.inputs.values()), ()))

    def first(self, rows: int) -> DecodedRows:
        """The first rows of these."""
        return self._replace(
            inputs={name: array[:rows] for name, array in self.inputs.items()},
            outputs={name: array[:rows] for name, array in self.outputs.items()},
            originals=None if self.originals is None else self.originals[:rows],
            sizes=None if self.sizes is None else self.sizes[:rows],
            answers=self.answers[:rows],
        )


class RowSink(Protocol):
    """A receiver of some of a model's rows."""

    def open(self) -> bool:
        """Whether it takes rows now. Called for each batch, so it must be cheap."""

    def take(self, taken: DecodedRows) -> None:
        """Take rows."""
