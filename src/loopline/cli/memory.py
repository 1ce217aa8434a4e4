"""A warning, before a stage starts, that its data may not fit into memory: Linux kills such a process without a message.

The estimate is coarse. docs/bring-your-own-data.md has the measurements behind it.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from loopline import settings
from loopline.data import catalog, sources
from loopline.settings import ModelSettings
from loopline.stages import stage_files

PROCESS = 500_000_000  # bytes: Python and its libraries
COPIES = 5  # a stage holds the encoded samples in several forms
DECODED = 3  # copies of the images at the model's input size
AUTO = 224  # pixels a side of most pretrained networks
DECODING = ("train", "export", "quantize", "evaluate", "calibrate")
LIMIT, USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def warning(stage: str, name: str, model: ModelSettings) -> str | None:
    """The warning to print before `stage` of model `name`; None if its data fit."""
    needed, free = need(stage, name, model), available()
    if needed <= free:
        return None
    return (
        f"{name}: warning: {stage} needs about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free here, "
        "so the system may kill it. Use less data or more memory: "
        'see "How large a data set may be" in docs/bring-your-own-data.md'
    )


def need(stage: str, name: str, model: ModelSettings) -> int:
    """The approximate number of bytes that `stage` needs; 0 if the manifest cannot be read."""
    if stage == "ingest":
        listed = catalog.load().get(model.dataset)
        dataset = listed.bytes if listed else _size(settings.located(model.dataset))
        return PROCESS + COPIES * (dataset + _size(sources.BATCHES / name))
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(stage_files.manifest(name))
    except (OSError, ValueError):  # the file is missing or is not Parquet: the stage reports it
        return 0
    encoded = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    needed = PROCESS + COPIES * int(encoded)
    shape = model.input.model_dump() if stage in DECODING else {}
    if "height" in shape:
        height, width = (AUTO if shape[side] == "auto" else shape[side] for side in ("height", "width"))
        needed += DECODED * int(metadata.num_rows) * height * width * shape["channels"]
    return needed


def available() -> int:
    """The bytes of memory that are free on the machine, or in its container if fewer are free there."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        return min(free, int(LIMIT.read_text(encoding="ascii")) - int(USED.read_text(encoding="ascii")))
    except (OSError, ValueError):  # there is no container, or it has no limit
        return free


def _size(path: Path) -> int:
    total = 0
    for file in [path] if path.is_file() else path.rglob("*"):
        with suppress(OSError):  # the file has gone, or this user may not see it
            total += file.stat().st_size if file.is_file() else 0
    return total
