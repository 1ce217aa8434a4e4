"""The goals of Loopline's server, and every figure in which another server is better.

A machine's speed must not decide whether a goal is met. So a goal is a ratio within one run, to the engine or to FastAPI;
only memory and idling are absolute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from benchmarks.serving.figures import (
    DEADLINE,
    FASTAPI,
    FLOODS,
    LOOPLINE,
    PEAKS,
    SHARES,
    Medians,
    goodput,
    normal_after,
    refused_in_time,
    scheduled_p50,
    scheduled_p99,
    unanswered,
    with_unit,
)

Measure = Callable[[Medians], float | None]
NOISE = 0.03  # rounds of one server differ by this share: a smaller lead of another one is not a loss


@dataclass(frozen=True)
class Goal:
    """A goal. key: its name in docs/benchmarks/*.json. where, quantity: what is measured, in words. limit: see at_least."""

    key: str
    where: str
    quantity: str
    measure: Measure
    limit: float
    at_least: bool = False  # else at most
    unit: str = ""

    def met(self, value: float) -> bool:
        """Whether a value reaches the goal."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        """The limit in words."""
        return f"at {'least' if self.at_least else 'most'} {self.written(self.limit)}"

    def written(self, value: float) -> str:
        """A value with its unit."""
        return with_unit(value, self.unit)


def _figure(key: str, field: str | Callable[[Any], float] = "") -> Measure:
    return lambda of: of(key, field)


def _ratio(part: Measure, base: Measure) -> Measure:
    """part / base; None where one was not measured, or where the base is not above 0; infinite if the part is."""

    def ratio(of: Medians) -> float | None:
        upper, lower = part(of), base(of)
        if upper is None or lower is None or lower <= 0:
            return None
        return inf if upper == inf else upper / lower

    return ratio


def _beside_fastapi(key: str, field: str | Callable[[Any], float] = "") -> Measure:
    """Loopline's figure / FastAPI's."""
    return _ratio(_figure(f"{LOOPLINE}/{key}", field), _figure(f"{FASTAPI}/{key}", field))


def _added(name: str, model: str) -> Measure:
    """Milliseconds that a server adds to the engine's p50, at one connection."""

    def added(of: Medians) -> float | None:
        server, engine = of(f"{name}/{model}/1", "p50"), of(f"engine/{model}", "p50")
        return None if server is None or engine is None else server - engine

    return added


def _goals() -> Iterator[Goal]:
    for model, share in (("classifier", 0.80), ("detector", 0.95)):
        for count in (16, 64):
            part, limit = _figure(f"{LOOPLINE}/{model}/{count}", "rate"), lambda of, model=model: of.limit(model)
            where = f"{model}, {count} connections"
            yield Goal(f"{model}/{count}/engine", where, "share of the engine's rate", _ratio(part, limit), share, True)
    for count in (16, 64):
        measure, where = _beside_fastapi(f"classifier/{count}", "rate"), f"classifier, {count} connections"
        yield Goal(f"classifier/{count}/fastapi", where, "ratio of the rate to FastAPI's", measure, 2.5, True)
    for model in ("classifier", "detector"):
        where, measure = f"{model}, one connection", _ratio(_added(LOOPLINE, model), _added(FASTAPI, model))
        added = "ratio of the time added to the engine's p50 to what FastAPI adds"
        yield Goal(f"{model}/1/p50", where, added, measure, 0.5)
        yield Goal(f"{model}/1/p99", where, "ratio of the p99 to FastAPI's", _beside_fastapi(f"{model}/1", "p99"), 1.0)
    for model in ("classifier", "detector"):
        where, measure = (
            f"{model}, open loop at 80% of FastAPI's peak",
            _beside_fastapi(f"{model}/open/peer/0.8", scheduled_p99),
        )
        yield Goal(f"{model}/open", where, "ratio of the p99 to FastAPI's", measure, 0.5)
    for model in ("classifier", "detector"):
        for times in FLOODS:
            key, where = f"{LOOPLINE}/{model}/flood/{times}", f"{model}, flood of {times} times its peak"
            name, within = f"{model}/flood/{times}", f"within {DEADLINE} ms"
            answers, refusals = f"share of its peak answered {within}", f"share of refusals that come {within}"
            yield Goal(f"{name}/answers", where, answers, _figure(key, goodput), 0.90, True)
            yield Goal(f"{name}/refusals", where, refusals, _figure(key, refused_in_time), 0.99, True)
            yield Goal(f"{name}/normal", where, "time until normal again", _figure(key, normal_after), 1.0, unit="s")
    yield Goal("start", "three bundles", "ratio of the start time to FastAPI's", _beside_fastapi("start/3"), 0.5)
    yield Goal("files", "PNG files", "ratio of the rate to FastAPI's", _beside_fastapi("file", "rate"), 2.0, True)
    for model in ("classifier", "detector"):
        measure = _ratio(_figure(f"signals/on/{model}", "p99"), _figure(f"signals/off/{model}", "p99"))
        where = f"{model}, drift signals"
        yield Goal(f"{model}/signals", where, "ratio of the p99 to the p99 without them", measure, 1.1)
    yield Goal("memory/1", "one bundle", "resident memory", _figure(f"{LOOPLINE}/memory/1"), 95, unit="MB")
    yield Goal("memory/3", "three bundles", "resident memory", _figure(f"{LOOPLINE}/memory/3"), 140, unit="MB")
    yield Goal("idle", "idle server", "share of a core", _figure(f"{LOOPLINE}/idle"), 1, unit="%")


GOALS = tuple(_goals())


def values(of: Medians) -> dict[str, float]:
    """Key of a goal -> its value with the three digits that are shown, so that what is shown also decides. Without unmeasured ones."""
    measured = {goal.key: goal.measure(of) for goal in GOALS}
    return {key: float(f"{value:.3g}") for key, value in measured.items() if value is not None}


def missed(goals: dict[str, float]) -> list[str]:
    """A sentence for each goal that is missed. goals: key -> value."""
    return [
        f"{_capital(goal.where)}: the {goal.quantity} is {goal.written(goals[goal.key])}, but the goal is {goal}."
        for goal in GOALS
        if goal.key in goals and not goal.met(goals[goal.key])
    ]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


@dataclass(frozen=True)
class Comparison:
    """A figure that every server has under its name and `key`. where, quantity, unit: in words. sign: 1 if more is better, else -1."""

    key: str
    field: str | Callable[[Any], float]
    where: str
    quantity: str
    unit: str
    sign: int


def _comparisons(of: Medians, connections: Sequence[int]) -> Iterator[Comparison]:
    for model in of.models:
        for count in connections:
            where = f"{model}, {count} connection{'s' if count > 1 else ''}"
            if count > 1:
                yield Comparison(f"{model}/{count}", "rate", where, "the rate", "answers/s", 1)
            else:
                yield Comparison(f"{model}/{count}", "p50", where, "the p50", "ms", -1)
            yield Comparison(f"{model}/{count}", "p99", where, "the p99", "ms", -1)
        for label, peak in PEAKS.items():
            for share in SHARES:
                key, where = f"{model}/open/{label}/{share}", f"{model}, open loop at {share:.0%} of {peak}"
                yield Comparison(key, scheduled_p50, where, "the p50", "ms", -1)
                yield Comparison(key, scheduled_p99, where, "the p99", "ms", -1)
                yield Comparison(key, unanswered, where, "the number without an answer", "requests/s", -1)
        for times in FLOODS:
            key, where = f"{model}/flood/{times}", f"{model}, flood of {times} times its own peak"
            answers = f"the share of its peak answered within {DEADLINE} ms"
            yield Comparison(key, goodput, where, answers, "", 1)
            yield Comparison(key, normal_after, where, "the time until normal again", "s", -1)
    for count in (1, 3):
        where = f"{count} bundle{'s' if count > 1 else ''}"
        yield Comparison(f"start/{count}", "", where, "the start time", "s", -1)
        yield Comparison(f"memory/{count}", "", where, "the resident memory", "MB", -1)
    yield Comparison("idle", "", "idle server", "the share of a core", "%", -1)
    yield Comparison("file", "rate", "PNG files", "the rate", "answers/s", 1)


def losses(of: Medians, connections: Sequence[int]) -> list[str]:
    """A sentence for every figure in which another server is better by more than the noise."""
    sentences = []
    for figure in _comparisons(of, connections):
        loopline = of(f"{LOOPLINE}/{figure.key}", figure.field)
        for name in of.names:
            peer = of(f"{name}/{figure.key}", figure.field)
            if name == LOOPLINE or loopline is None or peer is None:
                continue
            if figure.sign * peer > figure.sign * loopline * (1 + figure.sign * NOISE):
                both = [with_unit(value, figure.unit) for value in (loopline, peer)]
                sentences.append(
                    f"{_capital(figure.where)}: {figure.quantity} is {both[0]} with Loopline and {both[1]} with {name}."
                )
    return sentences
