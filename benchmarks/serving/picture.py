"""Draw docs/pictures/benchmarks.png."""

from __future__ import annotations

from pathlib import Path

from benchmarks.serving.figures import LOOPLINE, Figures, Medians

from loopline.lib.drawing import BLUE, GREY, INK, SKY, sheet


def picture(results: Figures, path: Path) -> None:
    """Draw each server's answers a second at the most connections, beside the engine's rate."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    of = Medians(results)
    with sheet(path, 8.0, 3.2, 1, len(of.models)) as (figure, axes):
        most = max(results["size"]["connections"])
        figure.suptitle(f"Answers a second, {most} connections, one core")
        for axis, model in zip(axes, of.models, strict=True):
            rates = {name: of(f"{name}/{model}/{most}", "rate") for name in of.names}
            rows = sorted(((rate, name) for name, rate in rates.items() if rate is not None))
            colours = [BLUE if name == LOOPLINE else SKY for _, name in rows]
            axis.barh([name for _, name in rows], [rate for rate, _ in rows], color=colours, height=0.65)
            limit = of.limit(model)
            for place, (rate, _) in enumerate(rows):
                inside = rate > 0.75 * limit  # beside its bar, the figure would cover the engine's line
                at, side, ink = (-0.02, "right", "white") if inside else (0.02, "left", INK)
                text = f"{rate:,.0f}"
                axis.text(rate + at * limit, place, text, va="center", ha=side, fontsize=8, color=ink)
            axis.axvline(limit, color=GREY, linestyle="--", linewidth=1.2, zorder=0.5)
            axis.text(
                limit * 0.98, -0.35, f"the engine alone {limit:,.0f}", ha="right", va="center", fontsize=8, color=INK
            )
            axis.set_xlim(0, max(limit, rows[-1][0]) * 1.18)
            axis.grid(visible=False, axis="y")
            axis.set_title(model.capitalize())
            axis.tick_params(axis="y", length=0)
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
