"""The number of samples (or boxes) of each class before and after a batch, as a table and as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from loopline.data.formats.common import natural
from loopline.data.manifest import Sample
from loopline.lib import files

MOST = 60  # classes in the picture; the table shows all


def count(samples: Iterable[Sample]) -> Counter[str]:
    """Class -> number of samples, or of boxes if the samples have boxes."""
    counts: Counter[str] = Counter()
    for sample in samples:
        labels = [sample.label or ""] if sample.boxes is None else [box.label for box in sample.boxes]
        counts.update(labels)
    return counts


def table(before: Counter[str], after: Counter[str]) -> str:
    """One line per class, `2` before `10`: counts before, new and after, and the shares before and after."""
    rows = [("CLASS", "BEFORE", "NEW", "AFTER", "SHARE BEFORE", "SHARE AFTER")]
    for label in sorted(after, key=natural):
        counts = (f"{before[label]:,}", f"{after[label] - before[label]:+,}", f"{after[label]:,}")
        rows.append((label, *counts, f"{_share(before, label):.1%}", f"{_share(after, label):.1%}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join(f"{{:{'>' if column else '<'}{width}}}" for column, width in enumerate(widths))
    return "\n".join(line.format(*row) for row in rows)


def draw(path: Path, before: Counter[str], after: Counter[str], *, title: str) -> None:
    """Write a bar chart of each class before and its gain, largest classes first, as a PNG at `path`. Atomic."""
    from matplotlib.figure import Figure

    labels = [label for label, _ in sorted(after.items(), key=lambda item: (-item[1], item[0]))][:MOST]
    old, new = [before[label] for label in labels], [after[label] - before[label] for label in labels]
    figure = Figure(figsize=(7, 1.2 + 0.28 * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(labels, old, color="#8da0b3", label="before")
    axes.barh(labels, new, left=old, color="#d9822b", label="this batch")
    axes.invert_yaxis()
    axes.set_title(title if len(labels) == len(after) else f"{title}: the {MOST} largest of {len(after)} classes")
    axes.set_xlabel("samples or boxes")
    axes.legend(loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    with files.replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _share(counts: Counter[str], label: str) -> float:
    return counts[label] / (counts.total() or 1)
