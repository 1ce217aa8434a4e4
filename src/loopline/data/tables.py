"""The pandas tables that `data.expectations` checks, derived from `data/<model>/manifest.parquet`.

The column `row` of each table identifies the row in words; expectations check the other columns.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loopline.data import manifest as manifests
from loopline.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

IMAGE = ("image", "width", "height")
SIDES = ("x1", "y1", "x2", "y2")


def required(task: Task) -> tuple[str, ...]:
    """The columns of the manifest that every sample must fill."""
    return ("id", "source", "path", "split", task.truth, "bytes", *(IMAGE if task.content == "image" else ("text",)))


def columns(path: Path, task: str) -> pd.DataFrame:
    """One row for each column of the manifest and one for its task: its actual type and the type in the schema."""
    import pandas as pd
    import pyarrow.parquet as pq

    schema = {field.name: str(field.type) for field in manifests.schema(task, ())} | {"(task)": task}
    # Parquet calls a list's child "element", Arrow "item".
    actual = {field.name: str(field.type).replace("<element:", "<item:") for field in pq.read_schema(path)}
    actual["(task)"] = manifests.task(path)
    names = list(schema | actual)
    cells = {"found": [actual.get(n, "absent") for n in names], "wanted": [schema.get(n, "absent") for n in names]}
    return pd.DataFrame({"row": names, **cells})


def derive(path: Path, task: Task, ingest: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The tables `samples`, `splits`, `ingest`, for a task with boxes `boxes`, and for a task with classes `classes`.

    The manifest's columns must match its schema. ingest: see `expectations.check`.
    """
    import pandas as pd

    rows = manifests.table(path, columns=[name for name in manifests.schema(task.name, ()).names if name != "image"])
    samples = _samples(rows, _content(path, task.content), task)
    frames = {"samples": samples}
    if task.truth == "boxes":
        frames["boxes"] = _boxes(rows, samples)
    labelled = frames.get("boxes", samples)
    if task.has_classes:
        frames["classes"] = _classes(labelled, manifests.labels(path))
    sizes = [int((labelled["split"] == split).sum()) for split in manifests.SPLITS]
    frames["splits"] = pd.DataFrame({"row": manifests.SPLITS, "size": sizes})
    frames["ingest"] = _ingest(ingest)
    return frames


def _ingest(ingest: Mapping[str, Any]) -> pd.DataFrame:
    """The share that ingest set aside: one row for the samples, and one for the boxes if ingest counted them."""
    import pandas as pd

    rows = []
    boxes = ingest.get("boxes")
    for noun, kept, part in (("samples", ingest["samples"], ingest), ("boxes", boxes and boxes["kept"], boxes)):
        if part:
            aside = sum(reason["count"] for reason in part["set_aside"].values())
            rows.append((f"{aside:,} of {aside + kept:,} {noun}", aside / max(1, aside + kept)))
    return pd.DataFrame(rows, columns=["row", "share"])


def _content(path: Path, column: str) -> list[str | None]:
    """The sha256 of each image or text; the column is read in batches, since all images may not fit into memory."""
    import pyarrow.parquet as pq

    hashes: list[str | None] = []
    for batch in pq.ParquetFile(path).iter_batches(batch_size=1024, columns=[column]):
        for value in batch.column(0).to_pylist():
            data = value.encode() if isinstance(value, str) else value
            hashes.append(None if data is None else hashlib.sha256(data).hexdigest())
    return hashes


def _samples(rows: pa.Table, content: list[str | None], task: Task) -> pd.DataFrame:
    """One row for each sample: id, path, split, label and the columns below.

    missing (names of empty cells, or None); content (sha256 of the image or text); in_splits (number of splits with this
    id); short_side and long_side in pixels; characters of the text, and ink (those without surrounding white space).
    """
    import pandas as pd

    frame: pd.DataFrame = rows.drop_columns(["boxes", "text"]).to_pandas()
    frame["content"] = content
    empty = pd.DataFrame(
        {n: frame["content"].isna() if n == "image" else rows[n].is_null().to_numpy() for n in required(task)}
    )
    frame["missing"] = _names(empty)
    frame["in_splits"] = frame.groupby("id")["split"].transform("nunique")
    if task.content == "text":
        texts = rows["text"].to_pandas()
        frame["characters"], frame["ink"] = texts.str.len(), texts.str.strip().str.len()
    else:
        sides = frame[["width", "height"]]
        frame["short_side"], frame["long_side"] = sides.min(axis=1), sides.max(axis=1)
    frame["row"] = frame["path"].fillna("(no path)")
    return frame


def _names(empty: pd.DataFrame) -> list[str | None]:
    """For each row the names of its true columns, None if it has none."""
    columns = list(empty.columns)
    return [" ".join(name for name, cell in zip(columns, row, strict=True) if cell) or None for row in empty.to_numpy()]


def _boxes(rows: pa.Table, samples: pd.DataFrame) -> pd.DataFrame:
    """One row for each box: label, split and the columns below.

    missing (names of empty corners or label, or None), side (the shorter side in pixels), overhang (pixels by which the box
    sticks out of its image, 0 inside).
    """
    import pandas as pd
    import pyarrow.compute as pc

    lists = rows["boxes"].combine_chunks()
    flat = pc.list_flatten(lists)
    frame = pd.DataFrame({name: pc.struct_field(flat, name).to_pandas() for name in ("label", *SIDES)})
    image = samples.iloc[pc.list_parent_indices(lists).to_numpy()].reset_index(drop=True)
    frame["split"] = image["split"]
    empty = frame[["label", *SIDES]].isna()
    frame["missing"] = _names(empty)
    x1, y1, x2, y2 = (frame[side].to_numpy(np.float64) for side in SIDES)
    frame["side"] = np.minimum(x2 - x1, y2 - y1)
    outside = np.stack([-x1, -y1, x2 - image["width"].to_numpy(np.float64), y2 - image["height"].to_numpy(np.float64)])
    frame["overhang"] = np.maximum(outside.max(axis=0, initial=-math.inf), 0)
    corners = zip(frame["label"], x1, y1, x2, y2, strict=True)
    frame["row"] = [
        f"{path}: {label} ({a:g}, {b:g}, {c:g}, {d:g})"
        for path, (label, a, b, c, d) in zip(image["row"], corners, strict=True)
    ]
    return frame


def _classes(labelled: pd.DataFrame, labels: tuple[str, ...]) -> pd.DataFrame:
    """One row for each class of the schema: its samples (or boxes) in `all` splits and in each split, and `imbalance`.

    imbalance: training samples of the largest class / those of this class. To report each fault once, `train` is empty
    for a class without samples, and `imbalance` for a class without training samples.
    """
    import pandas as pd

    counts = pd.crosstab(labelled["label"], labelled["split"]).reindex(
        index=labels, columns=manifests.SPLITS, fill_value=0
    )
    frame = counts.astype("float64").reset_index(names="row")
    frame["all"] = frame[list(manifests.SPLITS)].sum(axis=1)
    frame["imbalance"] = frame["train"].max() / frame["train"].where(frame["train"] > 0)
    frame["train"] = frame["train"].where(frame["all"] > 0)
    return frame
