"""Plans and profiles as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from loopline.planning.capacity import HOUR, HOURS, OVERHEAD, CapacityPlan, memory
from loopline.planning.plan_files import Prices, Profile

GIB = 2**30
BITS = (32, 16, 8, 4)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A text table with columns as wide as their longest cell; the first column is left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join((row[0].ljust(widths[0]), *cells)).rstrip())
    return "\n".join(lines)


def profiled(profile: Profile) -> str:
    """The measured figures as text."""
    busy = profile.load_average > 1.5 * max(profile.engines)  # measuring itself makes a load of about 1
    starts, single = np.median(profile.starts), profile.batches[1]
    batches = [[str(size), f"{spent * 1e3:.3g}", f"{size / spent:,.0f}"] for size, spent in profile.batches.items()]
    engines = [
        [str(count), f"{rate:,.0f}", f"{profile.efficiency(count):.0%}"] for count, rate in profile.engines.items()
    ]
    return "\n".join(
        (
            f"{profile.model} {profile.version} on one core of {profile.processor}, load average {profile.load_average:.1f}",
            f"cold start to the first right answer: {starts:.2f} s (median of {len(profile.starts)})",
            f"one request alone: {single * 1e3:.3g} ms, the slowest 1 in 200 {(single + profile.spread[-1][1]) * 1e3:.3g} ms",
            f"memory: {profile.memory.private:.0f} MiB private, {profile.memory.resident:.0f} MiB resident; the model's share "
            f"{profile.memory.growth:.1f} MiB for a file of {profile.memory.file:.2f} MiB",
            "",
            table(["sent at once", "ms", "requests/s"], batches),
            *(["MEASURED BESIDE OTHER WORK: the machine is faster than this when it is left alone"] * busy),
            "",
            table(["engines, a core each", "rows/s of each", "of one alone"], engines),
        )
    )


def planned(plan: CapacityPlan, profile: Profile, currency: str) -> str:
    """The traffic, the goal and a replica's figures, and the table of options."""
    goal, rates = plan.goal, plan.rates
    offer = plan.offers[0]
    lines = [
        f"traffic: {rates.mean():,.4g} requests/s on average, {rates.max():,.4g} in the busiest hour, "
        f"{rates.sum() * HOUR * HOURS / len(rates):,.0f} a month",
        f"goal: p99 within {goal.p99 * 1e3:g} ms, a replica used up to {goal.utilisation:.0%}, {goal.spare} spare machine(s)",
        f"a replica (one core, {profile.memory.resident:.0f} MiB, {offer.name}): at most {offer.service.capacity:,.0f} "
        f"requests/s, within the goal {offer.limit:,.0f}",
        "",
    ]
    rows = [
        [
            f"{option.name}, {option.way}",
            str(option.replicas),
            str(option.machines or "-"),
            f"{option.p99 * 1e3:.3g}",
            f"{option.cold_share:.2%}" if option.cold else "-",
            f"{option.cold:.1f}" if option.cold else "-",
            f"{option.cold_starts:,.0f}" if option.cold else "-",
            f"{option.month:,.2f}",
        ]
        for option in plan.options
    ]
    head = ["option", "replicas", "machines", "p99 ms", "wait cold", "up to s", "cold starts", f"{currency} a month"]
    lines.append(table(head, rows))
    lines += [f"{name} cannot: {reason}" for name, reason in plan.left_out.items()]
    if late := [option.name for option in plan.options if option.cold_share > 0.01]:
        lines.append(f"misses the p99: {', '.join(late)}: more than 1 in 100 requests wait for a cold start")
    most, measured = max(row.a_machine for row in plan.offers), max(profile.engines)
    if most > measured:
        lines.append(
            f"assumed: {most} replicas on one machine are each as fast as {measured} are together; no more were measured"
        )
    return "\n".join(lines)


def as_json(plan: CapacityPlan, currency: str) -> dict[str, Any]:
    """The plan as JSON for programs. An option whose cold_share is over 0.01 misses the p99."""
    return {
        "currency": currency,
        "goal": asdict(plan.goal),
        "requests_per_second": {"mean": float(plan.rates.mean()), "peak": float(plan.rates.max())},
        "replica": {
            offer.name: {"capacity": offer.service.capacity, "within_goal": offer.limit} for offer in plan.offers
        },
        "options": [asdict(option) for option in plan.options],
        "left_out": dict(plan.left_out),
    }


def memories(parameters: float, bits: Sequence[float], profiles: Sequence[Profile], prices: Prices | None) -> str:
    """The memory of models of `parameters` by the rule, with the cheapest machine, and the measured memory of `profiles`."""
    head, rows = ["bits a parameter", "weights GiB", f"x {OVERHEAD} GiB"], []
    for width in bits:
        need = memory(parameters, width) / GIB
        rows.append([f"{width:g}", f"{need / OVERHEAD:,.3g}", f"{need:,.3g}"])
        if prices:
            fit = [(row.per_hour, name) for name, row in prices.machines.items() if row.memory_gib >= need]
            rows[-1].append(
                f"{min(fit)[1]}, {min(fit)[0] * HOURS:,.2f} {prices.currency}" if fit else "none is large enough"
            )
    text = [f"{parameters:,.4g} parameters", table(head + ["cheapest machine, a month"] * bool(prices), rows)]
    if profiles:
        measured = [
            [p.model, f"{p.memory.file:.2f}", f"{p.memory.growth:.2f}", f"x {p.memory.growth / p.memory.file:.1f}"]
            for p in profiles
        ]
        text += ["", table(["measured", "file MiB", "in memory MiB", "ratio"], measured)]
    return "\n".join(text)
