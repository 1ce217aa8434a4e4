"""What we want of our own server, and every figure in which another one is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from benchmarks.serving.figures import DEADLINE, MODELS, OURS, Medians, normal_after, table
from benchmarks.serving.servers import KINDS

Goal = tuple[str, Callable[[Medians], float | None], str, float]


def _ratio(part: float | None, whole: float) -> float | None:
    return part / whole if part is not None and whole else None


def _share(model: str, connections: int) -> Callable[[Medians], float | None]:
    return lambda of: _ratio(of(f"{OURS}/{model}/{connections}", "rate"), of.limit(model))


def _over(field: str) -> Callable[[Medians], float | None]:
    return lambda of: (of(f"{OURS}/classifier/1", field) or 0.0) - (of("engine/classifier", "p50") or 0.0)


def _goodput(model: str) -> Callable[[Medians], float | None]:
    def share(of: Medians) -> float | None:
        floods = of.raw.get(f"{OURS}/{model}/flood")
        return floods[0]["flood"]["within"][DEADLINE] / floods[0]["peak"] if floods else None

    return share


def _recovery(model: str) -> Callable[[Medians], float | None]:
    def seconds(of: Medians) -> float | None:
        floods = of.raw.get(f"{OURS}/{model}/flood")
        back = normal_after(floods[0]) if floods else None
        return (inf if back is None else back) if floods else None

    return seconds


def _of(key: str, field: str = "") -> Callable[[Medians], float | None]:
    return lambda of: of(f"{OURS}/{key}", field)


GOALS: tuple[Goal, ...] = (
    ("classifier, 16 connections: share of the engine's limit", _share("classifier", 16), ">=", 0.75),
    ("classifier, 64 connections: share of the engine's limit", _share("classifier", 64), ">=", 0.75),
    ("detector, 16 connections: share of the engine's limit", _share("detector", 16), ">=", 0.92),
    ("detector, 64 connections: share of the engine's limit", _share("detector", 64), ">=", 0.92),
    ("classifier, one connection: p50 over the engine's, ms", _over("p50"), "<=", 0.20),
    ("classifier, one connection: p99 over the engine's p50, ms", _over("p99"), "<=", 0.40),
    ("classifier, open loop at 50 %: p99, ms", _of("classifier/open/0.5", "p99"), "<=", 1.0),
    ("classifier, open loop at 80 %: p99, ms", _of("classifier/open/0.8", "p99"), "<=", 4.0),
    ("detector, open loop at 50 %: p99, ms", _of("detector/open/0.5", "p99"), "<=", 4.0),
    ("detector, open loop at 80 %: p99, ms", _of("detector/open/0.8", "p99"), "<=", 12.0),
    ("classifier, four times too much: in time, of peak", _goodput("classifier"), ">=", 0.7),
    ("detector, four times too much: in time, of peak", _goodput("detector"), ">=", 0.9),
    ("classifier: normal after a flood, s", _recovery("classifier"), "<=", 1.0),
    ("detector: normal after a flood, s", _recovery("detector"), "<=", 1.0),
    ("start to right answers of three bundles, s", _of("start"), "<=", 0.5),
    ("memory with one bundle, MB", _of("memory_one"), "<=", 95.0),
    ("memory with three bundles, MB", _of("memory"), "<=", 140.0),
    ("idle, % of a core", _of("idle"), "<=", 1.0),
)


def _said(found: float) -> str:
    return f"{found:.2f}" if found < inf else "out of sight"


def goals_of(of: Medians) -> tuple[str, list[str]]:
    """The table of all goals, and a sentence for each that is missed."""
    rows, missed = [], []
    for what, measure, sign, wanted in GOALS:
        found = measure(of)
        if found is None:
            continue
        met = found >= wanted if sign == ">=" else found <= wanted
        rows.append(
            [
                what,
                f"{'at least' if sign == '>=' else 'at most'} {wanted:g}",
                f"{found:.2f}",
                "yes" if met else "**no**",
            ]
        )
        if not met:
            missed.append(
                f"Our own goal is missed: {what} is {_said(found)}, not {'at least' if sign == '>=' else 'at most'} {wanted:g}."
            )
    return table(["what", "goal", "here", "met"], rows), missed


def losses(of: Medians, connections: Sequence[int]) -> list[str]:
    """Every figure in which another server is better, by more than the 3 % that rounds differ by."""
    found = []
    fields = [
        (f"{model}/{count}", "rate", f"{model} at {count} connections, answers/s", 1)
        for model in MODELS
        for count in connections
    ]
    fields += [
        (f"{model}/{count}", "p99", f"{model} at {count} connections, p99 ms", -1)
        for model in MODELS
        for count in connections
    ]
    fields += [
        (f"{model}/open/{share}", "p99", f"{model} in an open loop at {share:.0%} of its own peak, p99 ms", -1)
        for model in MODELS
        for share in (0.5, 0.8)
    ]
    fields += [
        ("file", "rate", "image files/s", 1),
        ("start", "", "start, s", -1),
        ("idle", "", "idle, % of a core", -1),
    ]
    fields += [("memory_one", "", "MB with one bundle", -1), ("memory", "", "MB with three bundles", -1)]
    for key, field, what, sign in fields:
        ours = of(f"{OURS}/{key}", field)
        for name in of.names:
            theirs = of(f"{name}/{key}", field)
            whole = not next(kind for kind in KINDS if kind.name == name).models or "/" in key
            if (
                ours is not None
                and theirs is not None
                and name != OURS
                and whole
                and sign * theirs > sign * ours * (1 + sign * 0.03)
            ):
                found.append(f"{name} is better: {what}: {theirs:,.2f}, Loopline {ours:,.2f}.")
    return found
