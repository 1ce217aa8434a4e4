"""The validation report: one HTML file without scripts or external assets, for narrow and dark screens too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loopline import tasks
from loopline.data.expectations import Result
from loopline.data.manifest import SPLITS
from loopline.lib import templates

MAX_CLASSES = 50  # bars; more would be unreadable
TEMPLATE = Path(__file__).with_suffix(".html")


def html(name: str, result: Result, ingest: Mapping[str, Any], warnings: Iterable[str] = ()) -> str:
    """The page for the model `name`. ingest: `{"set_aside": {reason: {"count": n, "examples": [...]}}}`."""
    task = tasks.find(result.task)
    counted = "boxes" if task.truth == "boxes" else "samples"
    figures = {"samples": result.samples}
    if task.has_classes:  # the counts are by class
        figures["classes"] = len(result.counts)
        for split in SPLITS:
            figures[f"{counted} in {split}"] = sum(counts[split] for counts in result.counts.values())
    return templates.render(
        TEMPLATE,
        name=name,
        result=result,
        failed=result.failed,
        passed=[check for check in result.checks if check.passed],
        warnings=list(warnings),
        figures=figures,
        counted=counted,
        splits=SPLITS,
        bars=_bars(result.counts),
        smaller=len(result.counts) - MAX_CLASSES,
        set_aside=_set_aside(ingest),
    )


def _bars(counts: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """A stacked bar for each class, largest first. Its parts are (split, start, width) in percent of the longest bar."""
    bars = []
    rows = sorted(counts.items(), key=lambda row: -sum(row[1].values()))[:MAX_CLASSES]
    longest = max((sum(row.values()) for _, row in rows), default=1) or 1
    for label, row in rows:
        start, parts = 0.0, []
        for split in SPLITS:
            width = 100 * row[split] / longest
            parts.append((split, f"{start:.2f}", f"{width:.2f}"))
            start += width
        words = ", ".join(f"{split} {row[split]:,}" for split in SPLITS)
        bars.append({"label": label, "words": words, "parts": parts, "total": f"{sum(row.values()):,}"})
    return bars


def _set_aside(ingest: Mapping[str, Any]) -> list[tuple[str, list[str], str]]:
    """(reason, examples, count) for samples and boxes set aside and files left out, most frequent reason first."""
    parts = (
        ("", ingest["set_aside"]),
        ("box: ", ingest.get("boxes", {}).get("set_aside", {})),
        ("file left out: ", ingest.get("left_out", {})),
    )
    return [
        (f"{kind}{reason}", list(row.get("examples", ())), f"{row['count']:,}")
        for kind, reasons in parts
        for reason, row in sorted(reasons.items(), key=lambda item: (-item[1]["count"], item[0]))
    ]
