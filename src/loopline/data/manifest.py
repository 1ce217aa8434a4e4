"""The manifest, `data/<model>/manifest.parquet`: one row per sample, the only interface between data and training.

Columns: `id` (sha256 of the encoded image's bytes, or of the text), `source` (dataset or batch), `path` (place in the source),
`split`, `label` or `boxes` (label and x1, y1, x2, y2 in pixels of the upright image) as the task needs, `text`, `image`
(encoded bytes, unchanged), `width`, `height` (of the upright image), `bytes`.
The schema's metadata holds the schema version, the task and the class names in index order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loopline import tasks
from loopline.errors import LooplineError
from loopline.lib import files

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Box:
    """A labelled box in pixels of the upright image, x1 < x2, y1 < y2."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row of the manifest."""

    id: str
    source: str
    path: str
    split: str
    label: str | None = None
    boxes: tuple[Box, ...] | None = None
    text: str | None = None
    image: bytes | None = None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True)
class Split:
    """The samples of one split, in the manifest's order.

    inputs: encoded images, or texts. targets: what the task's `targets` returns: int64 (n,) class indices, or for each image a
    float32 (m, 5) array of class index, x1, y1, x2, y2 in pixels of the upright image. sizes: int32 (n, 2), width and height;
    zeros for text.
    """

    ids: list[str]
    inputs: list[bytes] | list[str]
    targets: Any
    sizes: NDArray[np.int32]
    labels: tuple[str, ...]


def schema(task: str, labels: Iterable[str]) -> pa.Schema:
    """The columns, types and metadata of a manifest with this task and these class names."""
    import pyarrow as pa

    box = pa.struct([("label", pa.string()), *((side, pa.float32()) for side in ("x1", "y1", "x2", "y2"))])
    columns = {name: pa.string() for name in ("id", "source", "path", "split", "label")}
    columns |= {"boxes": pa.list_(box), "text": pa.string(), "image": pa.binary()}
    columns |= {name: pa.int32() for name in ("width", "height", "bytes")}
    metadata = {"loopline": json.dumps({"schema": SCHEMA_VERSION, "task": task, "labels": list(labels)})}
    return pa.schema(list(columns.items()), metadata=metadata)


def write(path: Path, samples: Iterable[Sample], *, task: str, labels: Iterable[str]) -> None:
    """Write the samples atomically, sorted by id so that the file does not depend on their order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [_row(sample) for sample in sorted(samples, key=lambda s: s.id)]
    table = pa.Table.from_pylist(rows, schema=schema(task, labels))
    with files.replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd", row_group_size=4096)


def _row(sample: Sample) -> dict[str, Any]:
    content = sample.image if sample.image is not None else (sample.text or "").encode()
    row = {name: getattr(sample, name) for name in Sample.__dataclass_fields__}
    row["boxes"] = None if sample.boxes is None else [vars(box) for box in sample.boxes]
    return row | {"bytes": len(content)}


def table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read the manifest's table. Raises LooplineError if it is missing or has another schema version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not read_table: a thread of pyarrow's scanner may outlive it and abort the process at exit.
        with pq.ParquetFile(path) as file:
            loaded = file.read(columns, use_threads=False)
    except FileNotFoundError as error:
        raise LooplineError(f"{path} not found: run `dvc repro ingest`") from error
    except pa.ArrowInvalid as error:
        raise LooplineError(f"{path} is not a manifest: {error}") from error
    version = _metadata(loaded.schema, path)["schema"]
    if version != SCHEMA_VERSION:
        raise LooplineError(f"{path} has schema {version}, this version reads {SCHEMA_VERSION}: run `dvc repro ingest`")
    return loaded.select(columns) if columns else loaded


def _metadata(schema: pa.Schema, path: Path) -> dict[str, Any]:
    raw = (schema.metadata or {}).get(b"loopline")
    if raw is None:
        raise LooplineError(f"{path} is a Parquet file, but not a manifest: run `dvc repro ingest`")
    loaded: dict[str, Any] = json.loads(raw)
    return loaded


def labels(path: Path) -> tuple[str, ...]:
    """The class names in index order."""
    import pyarrow.parquet as pq

    return tuple(_metadata(pq.read_schema(path), path)["labels"])


def task(path: Path) -> str:
    """The task that the manifest was made for."""
    import pyarrow.parquet as pq

    return str(_metadata(pq.read_schema(path), path)["task"])


def load_split(path: Path, split: str) -> Split:
    """The samples of one split (`train`, `val` or `test`), ready for training or evaluation."""
    import pyarrow.compute as pc

    loaded = table(path)
    meta = _metadata(loaded.schema, path)
    loaded = loaded.filter(pc.equal(loaded["split"], split))
    columns = loaded.drop_columns(["source", "path", "split", "bytes"]).to_pydict()
    kind, labels = tasks.find(meta["task"]), tuple(meta["labels"])
    sizes = np.array([(w or 0, h or 0) for w, h in zip(columns["width"], columns["height"], strict=True)], np.int32)
    targets = kind.targets(columns[kind.truth], labels)
    return Split(columns["id"], columns[kind.content], targets, sizes.reshape(-1, 2), labels)
