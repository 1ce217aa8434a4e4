"""`loopline watch`: the drift of all models in the terminal, drawn from Prometheus' records alone, without a bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from loopline.drift import verdict
from loopline.errors import LooplineError
from loopline.observability import prometheus_api, rules
from loopline.observability.prometheus_api import Series

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

WANTED = (
    "loopline:drift_samples|loopline:drift_score|loopline:signal_score|loopline:signal_value:window"
    "|loopline:signal_value:reference|loopline:quality_estimated|loopline:quality_loss|loopline:quality_loss:classes"
    "|loopline:quality_labelled|loopline:quality_labelled:radius|loopline:labelled_samples"
    "|loopline_drift_least_samples|loopline_quality_reference|loopline:quality_limit|ALERTS"
)
LABELLED = ("loopline:quality_labelled", "loopline:quality_labelled:radius", "loopline:labelled_samples")
WINDOWS = 6  # length of the time line, in windows of traffic
CELLS = 48  # width of the bar and of the time line
MOVERS = 5
LINES = 7  # height of a model's picture without its movers
LEVELS = "▁▂▃▄▅▆▇█"  # a score of 1 is between the fourth and the fifth
COLOURS = {"critical": "red", "retrain": "red", "warning": "red", "notice": "yellow"}


class RecordedMover(NamedTuple):
    """A signal with its mean on the reference and in the window; None for classes, and if no sample has a number."""

    signal: str
    score: float
    before: float | None
    now: float | None


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """Prometheus' records of one version of a model. None: nothing was recorded, since there is too little traffic or none.

    history: the score over time, oldest first. estimates: quality by the way of estimation. classes: the loss by the shift of the
    predicted classes, if that counts. labelled: quality, the radius of its confidence sequence, and the number of labels; empty
    without labels.
    """

    model: str
    version: str
    samples: float | None
    least: float | None
    score: float | None
    history: tuple[float | None, ...]
    metric: str
    reference: float | None
    estimates: dict[str, float]
    loss: float | None
    classes: float | None
    labelled: tuple[float, ...]
    max_loss: float | None
    alerts: tuple[tuple[str, str], ...]
    movers: tuple[RecordedMover, ...]

    @property
    def verdict(self) -> tuple[str, str]:
        """The verdict in words, and their colour."""
        if self.score is None:
            if self.samples is None:
                return "nothing recorded yet: check that the rules are loaded", "dim"
            if not self.samples:
                return "no traffic in the window", "dim"
            return f"no verdict yet: {self.samples:.0f} of {self.least or 0:.0f} samples", "dim"
        if self.score <= 1:
            return "no drift", "green"
        if self.loss is not None and self.max_loss is not None and self.loss > self.max_loss:
            return "drift, and the model is worse on it", "bold red"
        return "drift, no harm estimated", "yellow"


def states(
    url: str, *, models: Sequence[str] = (), since: str = "6h", at: float | None = None
) -> tuple[float, list[ModelState], list[str]]:
    """The time, the state of every model and version (drifting ones first), and the firing alerts that belong to no model.

    Raises LooplineError, also if Prometheus has recorded nothing of Loopline.
    """
    rows = prometheus_api.instant(url, f'{{__name__=~"{WANTED}"}}', at)
    if not any(row.name.startswith("loopline") for row in rows):
        raise LooplineError(
            f"Prometheus at {url} has no Loopline series: scrape a server and load the rules, as `loopline up` does"
        )
    now = rows[0].points[-1][0]
    step = max(1, round(rules.seconds(since) / CELLS))
    score = f"max_over_time(loopline:drift_score[{step}s])"
    past = {_key(row): row for row in prometheus_api.ranged(url, score, now - (CELLS - 1) * step, now, step)}
    keys = {_key(row) for row in rows if row.name in ("loopline:drift_samples", "loopline_drift_least_samples")}
    chosen = [key for key in keys if not models or key[0] in models]
    recorded = {model for model, _ in keys}
    if missing := sorted(set(models) - recorded):
        names = ", ".join(sorted(recorded)) or "no model"
        raise LooplineError(f"Prometheus at {url} has no drift records of {', '.join(missing)}: it has {names}")
    firing = [row.labels for row in rows if row.name == "ALERTS" and row.labels.get("alertstate") == "firing"]
    others = {
        _clean(f"{alert['alertname']} {alert.get('model', alert.get('instance', ''))}".strip())
        for alert in firing
        if alert.get("model") not in recorded
    }
    drawn = []
    for key in chosen:
        history: list[float | None] = [None] * CELLS
        for moment, value in past[key].points if key in past else ():
            history[min(CELLS - 1, max(0, CELLS - 1 - round((now - moment) / step)))] = value
        own = [alert for alert in firing if alert.get("model") == key[0] and alert.get("version", key[1]) == key[1]]
        alerts = sorted({(_clean(alert["alertname"]), alert.get("severity", "")) for alert in own})
        drawn.append(_state(key, [row for row in rows if _key(row) == key], tuple(history), tuple(alerts)))
    return now, sorted(drawn, key=lambda state: ((state.score or 0) <= 1, state.model, state.version)), sorted(others)


def _key(row: Series) -> tuple[str, str]:
    return row.labels.get("model", ""), row.labels.get("version", "")


def _state(
    key: tuple[str, str],
    rows: Iterable[Series],
    history: tuple[float | None, ...],
    alerts: tuple[tuple[str, str], ...],
) -> ModelState:
    by_name: dict[str, list[Series]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)

    def figure(name: str) -> float | None:
        return max((row.value for row in by_name.get(name, ())), default=None)  # all replicas export the same

    def signals(name: str) -> dict[str, float]:
        return {row.labels["signal"]: row.value for row in by_name.get(name, ())}

    before, now = signals("loopline:signal_value:reference"), signals("loopline:signal_value:window")
    scores = sorted(signals("loopline:signal_score").items(), key=lambda item: -item[1])
    reference = by_name.get("loopline_quality_reference", ())
    labels = [value for value in map(figure, LABELLED) if value is not None]
    return ModelState(
        model=_clean(key[0]),
        version=_clean(key[1]),
        samples=figure("loopline:drift_samples"),
        least=figure("loopline_drift_least_samples"),
        score=figure("loopline:drift_score"),
        history=history,
        metric=_clean(next((row.labels["metric"] for row in reference), "quality")),
        reference=figure("loopline_quality_reference"),
        estimates={row.labels["estimate"]: row.value for row in by_name.get("loopline:quality_estimated", ())},
        loss=figure("loopline:quality_loss"),
        classes=figure("loopline:quality_loss:classes"),
        labelled=tuple(labels) if len(labels) == len(LABELLED) else (),
        max_loss=figure("loopline:quality_limit"),
        alerts=alerts,
        movers=tuple(RecordedMover(_clean(name), value, before.get(name), now.get(name)) for name, value in scores),
    )


def _clean(label: str) -> str:
    """The label with ? for each character that cannot be printed, since such characters can control the terminal."""
    return "".join(character if character.isprintable() else "?" for character in label)


def bar(score: float, cells: int = CELLS) -> str:
    """A bar from 0 to 2 with a mark at 1: `█████████│███······`."""
    filled = round(min(max(score, 0.0), 2.0) / 2 * cells)
    return "".join("│" if i == cells // 2 else "█" if i - (i > cells // 2) < filled else "·" for i in range(cells + 1))


def spark(score: float | None) -> str:
    """A score of up to 2 as a block; a space for None."""
    if score is None:
        return " "
    return LEVELS[max(0, min(7 if score > 1 else 3, int(score * 4)))]


def picture(state: ModelState, since: str = "6h", movers: int = MOVERS) -> RenderableType:
    """The picture of one model, for a terminal of 80 columns."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    words, colour = state.verdict
    head = Table.grid(expand=True)
    head.add_column()
    head.add_column(justify="right")
    head.add_row(Text.assemble((state.model, "bold"), " ", (state.version, "dim")), Text(words, style=colour))
    lines = Table.grid(padding=(0, 1))
    lines.add_column(style="dim", width=10)
    lines.add_column()
    if state.score is not None:
        lines.add_row("  samples", f"{state.samples or 0:.0f} in the window, {state.least or 0:.0f} are needed")
        over = "red" if state.score > 1 else "green"
        lines.add_row("  score", Text.assemble((bar(state.score), over), f" {state.score:.2f}, alarm over 1"))
    if any(value is not None for value in state.history):
        cells = [(spark(score), "red" if score is not None and score > 1 else "green") for score in state.history]
        lines.add_row(f"  last {since}", Text.assemble(*cells, ("  ▅ and taller: alarm", "dim")))
    if state.score is not None and state.estimates:
        lines.add_row(f"  {state.metric}", _quality(state))
    if state.alerts:
        named = [(f"{name} ", COLOURS.get(severity, "")) for name, severity in state.alerts]
        lines.add_row("  firing", Text.assemble(*named))
    for number, mover in enumerate(state.movers[:movers]):
        lines.add_row("" if number else "  moved", _mover(mover))
    return Group(head, lines, "")


def _quality(state: ModelState) -> str:
    """The estimates and the loss: that of their mean, or that of the predicted classes if it is larger."""
    reference = state.reference or 0.0
    ways = ", ".join(f"{value:.3f} by {_clean(way)}" for way, value in sorted(state.estimates.items(), reverse=True))
    lines = [f"{reference:.3f} on the reference; estimated {ways}"]
    if state.loss is not None:
        way = "the classes' shift" if state.loss == state.classes else "their mean"
        level = f"{reference - state.loss:.3f} by {way}"
        lines.append(f"{level}: {verdict.change(-state.loss)}, harm is over {100 * (state.max_loss or 0):.1f}")
    if state.labelled:
        value, radius, labels = state.labelled
        lines.append(f"{value:.3f} ± {radius:.3f} by {labels:,.0f} labels: {verdict.change(value - reference)}")
    return "\n".join(lines)


def _mover(mover: RecordedMover) -> Text:
    from rich.text import Text

    moved = (
        ""
        if mover.before is None and mover.now is None
        else f"mean {verdict.figure(mover.before)} → {verdict.figure(mover.now)}"
    )
    score = (f"score {mover.score:5.2f}", "red" if mover.score > 1 else "")
    return Text.assemble(f"{mover.signal:18.18} ", score, f"  {moved}")


def view(url: str, *, models: Sequence[str], since: str, room: int | None, note: str) -> RenderableType:
    """All models under a line with the time. room: lines of the terminal, or None for no limit."""
    from rich.console import Group
    from rich.text import Text

    now, drawn, others = states(url, models=models, since=since)
    movers = MOVERS if room is None else max(1, min(MOVERS, room // max(1, len(drawn)) - LINES))
    moment = datetime.fromtimestamp(now).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    head = [Text(f"Drift by {url} at {moment}{note}", style="dim")]
    head += [Text(f"firing: {', '.join(others)}", style="red")] if others else []
    return Group(*head, "", *(picture(state, since, movers) for state in drawn))


def span(url: str) -> str:
    """The time line's length: six windows of the rules. Raises LooplineError if Prometheus has no Loopline rules."""
    return rules.duration(WINDOWS * rules.seconds(prometheus_api.rules_window(url)))


def run(url: str, *, models: Sequence[str] = (), since: str = "6h", once: bool = False, every: float = 5.0) -> None:
    """Draw every `every` seconds until Ctrl-C. Raises LooplineError if there is nothing to draw at the start."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    moving = console.is_terminal and not once
    note = f", every {every:g} s until Ctrl-C" if moving else ""

    def draw() -> RenderableType:
        return view(url, models=models, since=since, room=console.height - 3 if moving else None, note=note)

    shown = draw()
    if not moving:
        console.print(shown)
    if once:
        return
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        show: Callable[[RenderableType], None] = console.print
        if moving:
            live = stack.enter_context(Live(shown, console=console, screen=True, auto_refresh=False))
            show = partial(live.update, refresh=True)
        while True:
            time.sleep(max(0.2, every))
            try:
                shown = draw()
                show(shown)
            except LooplineError as error:  # Prometheus may be restarting, so the last picture stays
                failed = Text(str(error), style="red")
                show(Group(failed, shown) if moving else failed)
    if moving:
        console.print(shown)  # the terminal removes the live screen: leave the last picture
