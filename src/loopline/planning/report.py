"""A plan and a profile in words and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from loopline.planning.capacity import HOUR, HOURS, OVERHEAD, CapacityPlan, memory
from loopline.planning.inputs import Prices, Profile

GIB = 2**30
BITS = (32, 16, 8, 4)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be; all but the first to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join((row[0].ljust(widths[0]), *cells)).rstrip())
    return "\n".join(lines)


def profiled(profile: Profile) -> str:
    """What was measured."""
    busy = profile.load_average > 1.5 * max(profile.engines)  # measuring makes about 1 itself
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
    """The table of options, and what they are planned with."""
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
            f"{one.name}, {one.way}",
            str(one.replicas),
            str(one.machines or "-"),
            f"{one.p99 * 1e3:.3g}",
            f"{one.cold_share:.2%}" if one.cold else "-",
            f"{one.cold:.1f}" if one.cold else "-",
            f"{one.cold_starts:,.0f}" if one.cold else "-",
            f"{one.month:,.2f}",
        ]
        for one in plan.options
    ]
    head = ["option", "replicas", "machines", "p99 ms", "wait cold", "up to s", "cold starts", f"{currency} a month"]
    lines.append(table(head, rows))
    lines += [f"{name} cannot: {why}" for name, why in plan.left_out.items()]
    if late := [one.name for one in plan.options if one.cold_share > 0.01]:
        lines.append(f"misses the p99: {', '.join(late)}: more than 1 in 100 requests wait for a cold start")
    most, known = max(one.a_machine for one in plan.offers), max(profile.engines)
    if most > known:
        lines.append(
            f"assumed: {most} replicas on one machine are each as fast as {known} are together; no more were measured"
        )
    return "\n".join(lines)


def as_json(plan: CapacityPlan, currency: str) -> dict[str, Any]:
    """The same for programs. cold_share beyond 0.01 misses the p99."""
    return {
        "currency": currency,
        "goal": asdict(plan.goal),
        "requests_per_second": {"mean": float(plan.rates.mean()), "peak": float(plan.rates.max())},
        "replica": {one.name: {"capacity": one.service.capacity, "within_goal": one.limit} for one in plan.offers},
        "options": [asdict(one) for one in plan.options],
        "left_out": dict(plan.left_out),
    }


def memories(parameters: float, bits: Sequence[float], profiles: Sequence[Profile], prices: Prices | None) -> str:
    """What models of so many parameters take by the rule, the cheapest machine for it, and what the rule says of profiled models."""
    head, rows = ["bits a parameter", "weights GiB", f"x {OVERHEAD} GiB"], []
    for one in bits:
        need = memory(parameters, one) / GIB
        rows.append([f"{one:g}", f"{need / OVERHEAD:,.3g}", f"{need:,.3g}"])
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
