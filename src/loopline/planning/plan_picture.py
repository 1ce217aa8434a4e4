"""Two pictures of a plan: latency against traffic for several numbers of replicas, and monthly cost against traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loopline.lib.drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, SKY, sheet
from loopline.planning.capacity import CapacityPlan, Offer

COLOURS = (BLUE, GREEN, PURPLE, SKY, ORANGE)
POINTS = 60


def draw(path: Path, plan: CapacityPlan, currency: str) -> None:
    """Write the pictures to `path` as a PNG."""
    with sheet(path, 10.0, 3.8, 1, 2) as (_, (left, right)):
        _latency(left, plan)
        _cost(right, plan, currency)


def _latency(axis: Any, plan: CapacityPlan) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    best = next(offer for offer in plan.offers if offer.name == plan.options[0].name)
    needed = plan.options[0].replicas
    counts = sorted({count for count in (1, needed // 2, needed - 1, needed, needed + 1) if count})
    goal = plan.goal.p99 * 1e3
    end = counts[-1] * best.service.capacity
    share = np.linspace(0.0, 0.97, POINTS)  # of the capacity
    p99 = np.array([best.service.latency(part * best.service.capacity) for part in share]) * 1e3
    for count, colour in zip(counts, COLOURS, strict=False):
        label = f"{count} replica{'s' * (count > 1)}"
        axis.plot(share * count * best.service.capacity, p99, color=colour, label=label)
    axis.axhline(goal, color=RED, linestyle="--", linewidth=1.2)
    axis.text(end, goal, f"goal {goal:g} ms", color=RED, ha="right", va="bottom", fontsize=8)
    axis.axvline(plan.rates.max(), color=GREY, linestyle="--", linewidth=1.2)
    axis.text(
        plan.rates.max(), 1.0, " busiest hour", color=INK, fontsize=8, va="top", transform=axis.get_xaxis_transform()
    )
    axis.set(xlabel="requests a second", ylabel="p99, ms", yscale="log", xlim=(0, end), title=f"Latency on {best.name}")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.legend(loc="lower right", fontsize=8)


def _cost(axis: Any, plan: CapacityPlan, currency: str) -> None:
    """Draw the cost of traffic that keeps its shape over the week and is scaled up and down."""
    from matplotlib.ticker import LogLocator

    mean = float(plan.rates.mean()) or 1.0
    shape = plan.rates / mean if plan.rates.any() else np.ones_like(plan.rates)
    means = np.geomspace(min(1e-4, mean / 10), mean * 10, 2 * POINTS)
    rented: list[tuple[Offer, Any]] = []
    zero: list[tuple[Offer, Any]] = []
    for offer in plan.offers:
        curves = np.array([[option.month for option in offer.options(shape * scaled)] for scaled in means])
        (rented if offer.options(plan.rates)[0].machines else zero).append((offer, curves[:, 0]))
    cheapest = min(rented, key=lambda pair: pair[1][np.searchsorted(means, mean)]) if rented else None
    chosen = [*([(cheapest[0], cheapest[1], "always on")] if cheapest else []), *((*pair, "to zero") for pair in zero)]
    for (offer, month, way), colour in zip(chosen, COLOURS, strict=False):
        axis.plot(means, month, color=colour, label=f"{offer.name}, {way}")
        if cheapest and offer is not cheapest[0]:
            _crossing(axis, means, month, cheapest[1], colour)
    axis.axvline(mean, color=GREY, linestyle="--", linewidth=1.2)
    axis.text(
        mean, 0.0, "this traffic ", color=INK, fontsize=8, ha="right", va="bottom", transform=axis.get_xaxis_transform()
    )
    axis.set(xscale="log", yscale="log", xlabel="mean requests a second, same shape", title=f"Cost, {currency} a month")
    axis.xaxis.set_major_locator(LogLocator(numticks=7))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.legend(loc="upper left", fontsize=8)


def _crossing(axis: Any, means: Any, month: Any, other: Any, colour: str) -> None:
    """Mark the traffic above which scaling to zero costs more than `other`."""
    dearer = np.flatnonzero(month > other)
    if len(dearer) and dearer[0]:
        at = means[dearer[0]]
        axis.plot([at], [month[dearer[0]]], marker="o", color=colour, markersize=6)
        axis.annotate(
            f"{at:.2g}/s", (at, month[dearer[0]]), (4, -12), textcoords="offset points", fontsize=8, color=INK
        )
