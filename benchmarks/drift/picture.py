"""Draw docs/pictures/drift-benchmark.png."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from benchmarks.drift.page import LOOPLINE, RATE, Figures, detections, methods

from loopline.lib.drawing import BLUE, GREEN, PURPLE, RED, SKY, sheet

COLOURS = (BLUE, RED, GREEN, PURPLE, SKY)
ACROSS = 3  # panels


def picture(results: Figures, path: Path) -> None:
    """Draw the detection rate over the window size, with a panel for each data set."""
    trials = results["trials"]
    sizes = sorted({row["n"] for row in trials[0]["rows"]})
    columns = min(ACROSS, len(trials))
    rows = -(-len(trials) // columns)
    with sheet(path, 3.0 * columns, 0.9 + 2.5 * rows, rows, columns) as (figure, axes):
        figure.suptitle(f"Shifted windows that are seen, at {RATE:.0%} false alarms")
        for axis, trial in zip(axes, trials, strict=False):
            for colour, method in zip(COLOURS, methods(trial), strict=True):
                rates = [detections(trial, method, lambda row, n=n: row["n"] == n) for n in sizes]
                wide, large = (2.6, 4) if method == LOOPLINE else (1.4, 3)
                axis.plot(sizes, rates, color=colour, linewidth=wide, marker="o", markersize=large, label=method)
            axis.set_xscale("log")
            axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
            axis.minorticks_off()
            axis.set_ylim(0, 1.02)
            axis.set_yticks(np.linspace(0, 1, 6))
            axis.set_title(trial["dataset"])
        for axis in axes[len(trials) :]:
            axis.set_axis_off()
        for axis in axes[max(0, len(trials) - columns) : len(trials)]:
            axis.set_xlabel("samples in the window")
        for axis in axes[: len(trials) : columns]:
            axis.set_ylabel("share seen")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(COLOURS), fontsize=8)
