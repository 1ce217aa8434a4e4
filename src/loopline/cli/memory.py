"""Whether a stage's data fit into memory: said before it starts, since the system ends a process that has no room without a word.

The estimate is coarse. docs/bring-your-own-data.md says what was measured.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from loopline import settings
from loopline.data import catalog, sources
from loopline.settings import ModelSettings
from loopline.stages import files

PROCESS = 500_000_000  # bytes: Python and its libraries
COPIES = 5  # of the encoded samples, which a stage holds in several forms
DECODED = 3  # of the images at the model's input size
DECODING = ("train", "export", "quantize", "evaluate", "calibrate")
LIMIT, USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def warning(stage: str, name: str, model: ModelSettings) -> str | None:
    """The sentence to print before `stage` of model `name`; None where its data fit."""
    needed, free = need(stage, name, model), available()
    if needed <= free:
        return None
    return (
        f"{name}: warning: {stage} needs about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free here: the system may "
        'end it. Give it less data or more memory: "How large a data set may be" in docs/bring-your-own-data.md'
    )


def need(stage: str, name: str, model: ModelSettings) -> int:
    """Bytes that `stage` will need, about; 0 where the manifest cannot be read."""
    if stage == "ingest":
        known = catalog.load().get(model.dataset)
        dataset = known.bytes if known else _size(settings.located(model.dataset))
        return PROCESS + COPIES * (dataset + _size(sources.BATCHES / name))
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(files.manifest(name))
    except (OSError, ValueError):  # missing, or no Parquet file: the stage says it
        return 0
    encoded = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    needed = PROCESS + COPIES * int(encoded)
    if stage in DECODING and isinstance(model.input, settings.ImageShape):
        needed += DECODED * int(metadata.num_rows) * model.input.height * model.input.width * model.input.channels
    return needed


def available() -> int:
    """Bytes that this process can still take: of the machine, or of its container where that has less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        return min(free, int(LIMIT.read_text(encoding="ascii")) - int(USED.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def _size(path: Path) -> int:
    total = 0
    for file in [path] if path.is_file() else path.rglob("*"):
        with suppress(OSError):  # gone, or not ours to see
            total += file.stat().st_size if file.is_file() else 0
    return total
