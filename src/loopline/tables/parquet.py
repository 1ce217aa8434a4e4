"""Read Parquet, a batch of rows at a time, with the class names that the `datasets` library writes into a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from loopline.errors import LooplineError
from loopline.tables.delimited import TableRow

BATCH = 1024  # rows in memory at a time


class Parquet:
    """The rows of a Parquet file."""

    def __init__(self, file: IO[bytes], *, name: str) -> None:
        """Read the schema. name: for messages. Raises LooplineError, as `rows` does."""
        import pyarrow.parquet as pq

        self._name = name
        with self._told("is not a Parquet file"):
            self._file = pq.ParquetFile(file)
            self.names: list[str] = list(self._file.schema_arrow.names)
            self.total: int = self._file.metadata.num_rows
            self._classes = _class_names(self._file.schema_arrow.metadata)

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        """Yield the values of those columns for each row. Class numbers become names, and -1 becomes None."""
        number = 0
        # In one thread: a thread of pyarrow that holds a Python file may outlive the interpreter and abort the process.
        batches = self._file.iter_batches(batch_size=BATCH, columns=list(columns), use_threads=False)
        while True:
            with self._told("cannot be read to its end"):
                batch = next(batches, None)
                if batch is None:
                    return
                values = [batch.column(column).to_pylist() for column in columns]
            for row in zip(*values, strict=True):
                number += 1
                try:
                    named = [self._named(column, value) for column, value in zip(columns, row, strict=True)]
                except IndexError:
                    yield TableRow(number, problem="class number without a name")
                else:
                    yield TableRow(number, named)

    def _named(self, column: str, value: Any) -> Any:
        if column not in self._classes:
            return value
        if isinstance(value, list):
            return [self._named(column, number) for number in value]
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        if value < -1:
            raise IndexError
        return None if value == -1 else self._classes[column][value]

    @contextmanager
    def _told(self, problem: str) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise LooplineError(f"{self._name} {problem}: {reason:.300}") from error


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Column -> class names, which the `datasets` library writes for columns of numbers or of lists of numbers."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        inner = {name: entry.get("feature", entry) for name, entry in features.items() if isinstance(entry, dict)}
        return {name: list(map(str, entry["names"])) for name, entry in inner.items() if "names" in entry}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
