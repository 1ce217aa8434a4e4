"""Draw the drill over time: accuracy, drift score and threshold, answering versions, and events."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loopline.drill.record import MARKS, DrillRecord
from loopline.drill.world import Seen
from loopline.lib.drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, SKY, SOFT, sheet

STEP = 2.0  # seconds for each point of a curve
COLOURS = (BLUE, GREEN, PURPLE, SKY)
NAMES = ("first champion", "retrained", "another", "another")
LOWEST = 0.4  # lower end of the accuracy axis
LINES = 5  # lines of event names above the panels
LETTER = 0.0064  # width of a letter, as a share of the picture


def table(record: DrillRecord) -> str:
    """The timeline as a Markdown table."""
    rows = ["| time | | |", "|---|---|---|"]
    for event in record.events:
        text = event.text.replace("\n", "; ").replace("|", "/")
        clock = f"{int(event.at) // 60:02}:{int(event.at) % 60:02}"
        rows.append(f"| {clock} | {MARKS[event.kind][0]} | {f'**{text}**' if event.kind == 'act' else text} |")
    return "\n".join(rows) + "\n"


def draw(path: Path, record: DrillRecord, seen: Sequence[Seen], drift: str) -> None:
    """Draw the picture. drift: a short name for the drift."""
    end = max(request.at for request in seen)
    edges = np.arange(0, end + STEP, STEP)
    middles = edges[:-1] + STEP / 2
    with sheet(path, 11.0, 7.2, 4, 1) as (figure, axes):
        figure.suptitle("One drill: drift, labels, retraining, canary, promotion, rollback", x=0.01, ha="left")
        axes[0].get_gridspec().set_height_ratios([0.7, 2, 2, 2])
        strip, accuracy, score, versions = axes
        _accuracy(accuracy, seen, middles, drift)
        _score(score, record)
        _versions(versions, seen, edges, middles)
        for axis in axes:
            axis.set_xlim(0, end)
            axis.set_xticks(np.arange(0, end, next((s for s in (30, 60, 120, 300) if end < 16 * s), 900)))
            axis.xaxis.set_major_formatter(lambda second, _: f"{int(second) // 60}:{int(second) % 60:02}")
        for axis in axes[:-1]:
            axis.tick_params(labelbottom=False)
        versions.set_xlabel("minutes since the drill began")
        _events(strip, axes[1:], record, end)


def _accuracy(axis: Any, seen: Sequence[Seen], middles: Any, drift: str) -> None:
    measured = [request for request in seen if request.right is not None and request.part != "train"]
    times = np.array([request.at for request in measured])
    right = np.array([bool(request.right) for request in measured], float)
    means = []
    for middle in middles:
        nearby = right[np.abs(times - middle) < 2 * STEP]
        means.append(nearby.mean() if len(nearby) else np.nan)
    axis.plot(middles, means, color=BLUE)
    drifted = [request.at for request in measured if request.drifted]
    if drifted:
        axis.axvspan(min(drifted), max(drifted), color=ORANGE, alpha=0.10, linewidth=0)
        axis.text(max(drifted), LOWEST + 0.02, f"{drift} ", ha="right", color=ORANGE, fontsize=8)
    axis.set_ylim(LOWEST, 1.02)
    axis.set_title("Accuracy, on samples that nobody labels")


def _score(axis: Any, record: DrillRecord) -> None:
    versions = list(dict.fromkeys(version for figure in record.figures for version in figure.score))
    for colour, name, version in zip(COLOURS, NAMES, versions, strict=False):
        points = [(figure.at, figure.score[version]) for figure in record.figures if version in figure.score]
        axis.plot(*zip(*points, strict=True), color=colour, label=f"{name}, {version:.7}")
    axis.axhline(1, color=RED, linewidth=1, linestyle="--")
    firing = [figure.at for figure in record.figures if "RetrainCandidate" in figure.firing]
    if firing:
        axis.axvspan(min(firing), max(firing), color=RED, alpha=0.08, linewidth=0)
    axis.set_yscale("symlog", linthresh=1)
    axis.set_ylim(0, None)
    axis.set_yticks([0, 1, 3, 10, 30], ["0", "1", "3", "10", "30"])
    axis.minorticks_off()
    axis.set_title("Drift score by version (alarm over 1; shaded: RetrainCandidate fires)")
    if versions:
        axis.legend(fontsize=7, loc="lower right")


def _versions(axis: Any, seen: Sequence[Seen], edges: Any, middles: Any) -> None:
    versions = list(dict.fromkeys(request.version for request in seen if request.version))
    counts = np.array(
        [np.histogram([request.at for request in seen if request.version == v], edges)[0] for v in versions], float
    )
    shares = 100 * counts / np.maximum(1, counts.sum(0))
    axis.stackplot(
        middles,
        shares,
        colors=COLOURS[: len(versions)],
        labels=[f"{name}, {v:.7}" for name, v in zip(NAMES, versions, strict=False)],
        alpha=0.75,
        linewidth=0,
    )
    lost = [request.at for request in seen if request.status != 200]
    axis.plot(lost, [50] * len(lost), "x", color=RED)
    axis.set_ylim(0, 100)
    axis.grid(visible=False)
    axis.set_title(f"Who answers, % ({len(seen):,} requests, {len(lost)} lost)")
    axis.legend(fontsize=7, loc="lower left", frameon=True, framealpha=0.9, edgecolor=GREY)


def _events(strip: Any, axes: Any, record: DrillRecord, end: float) -> None:
    """Write the events' names above the panels without overlaps, each with a dotted line down through the panels."""
    strip.axis("off")
    strip.set_ylim(0, LINES)
    line_ends = [-1e9] * LINES  # the end of the last name on each line
    for event in record.events:
        if not event.short:
            continue
        width = end * LETTER * (len(event.short) + 2)
        start = min(event.at, end - width)
        row = next((row for row in range(LINES) if line_ends[row] <= start), int(np.argmin(line_ends)))
        line_ends[row] = start + width
        strip.text(start, row + 0.5, event.short, fontsize=7.5, va="center", color=INK)
        strip.plot([event.at] * 2, [0, row + 0.2], color=SOFT, linewidth=0.7, linestyle=":")
        for axis in axes:
            axis.axvline(event.at, color=SOFT, linewidth=0.7, linestyle=":")
