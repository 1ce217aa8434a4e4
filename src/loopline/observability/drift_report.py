"""`loopline drift report`: one HTML file about a bundle and a window of its traffic, without scripts or external assets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from loopline.drift import reference as drift
from loopline.drift import verdict
from loopline.drift.reference import Reference, Signal
from loopline.drift.statistic import Mover, WindowCounts
from loopline.drift.verdict import Finding
from loopline.errors import LooplineError
from loopline.journal.reader import Entry
from loopline.lib import files, templates
from loopline.observability import outliers, prometheus_api
from loopline.release.bundle import Bundle, read
from loopline.tasks.signals import CLASS

TEMPLATE = Path(__file__).with_suffix(".html")
MAX_CLASSES = 12  # rows of the table of classes
JOURNALLED = 1000  # number of latest journal samples to choose examples from
AXIS = 34  # characters that fit under a picture


def make(
    folder: Path,
    out: Path,
    *,
    prometheus: str = "http://127.0.0.1:9090",
    window: str = "1h",
    at: datetime | None = None,
    url: str | None = None,
    token: str | None = None,
    journal: Path | None = None,
) -> str:
    """Write the page about the bundle in `folder` to `out` and return the verdict. Raises LooplineError.

    Without `url`, the counts come from Prometheus, for a window that ends at `at` (default: now). With `url`, they are those of
    that server since its start. journal: the journal's folder, from which examples are taken.
    """
    bundle, reference = read(folder), drift.read(folder / "drift.json")
    key = (bundle.manifest.name, bundle.version[:12], reference)
    if url:
        counts = prometheus_api.since_start(url, *key, token=token)
        source = f"Counted by the server at {url} since its start, until {_moment(datetime.now(UTC))}."
    else:
        at = at or datetime.now(UTC)
        counts = prometheus_api.window(prometheus, *key, at=at.timestamp(), window=window)
        source = f"The window of {window} to {_moment(at)}, counted by the Prometheus at {prometheus}."
    entries = _journalled(journal, *key[:2]) if journal else []
    write(out, html(bundle, reference, counts, source, entries))
    return verdict.sentence(verdict.judge(counts, reference), reference)


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _journalled(folder: Path, model: str, version: str) -> list[Entry]:
    from loopline.journal.reader import JournalReader

    return JournalReader(folder).latest(model, JOURNALLED, version=version)


def html(bundle: Bundle, reference: Reference, counts: WindowCounts, source: str, entries: Sequence[Entry] = ()) -> str:
    """The page. source: a sentence on the origin and the time of the counts. entries: journal entries to choose examples from."""
    finding = verdict.judge(counts, reference)
    card = (bundle.folder / "MODEL_CARD.md").read_text(encoding="utf-8").split("\n\n")
    classes = _classes(finding, reference)
    return templates.render(
        TEMPLATE,
        name=bundle.manifest.name,
        version=bundle.version[:12],
        source=source,
        reference=reference,
        finding=finding,
        tone=("bad" if finding.harmful else "so") if finding.drifted else "good" if finding.movers else "none",
        sentence=verdict.sentence(finding, reference),
        figures=_figures(finding, reference),
        mix_says=_mix(finding, reference),
        classes=classes[:MAX_CLASSES],
        classes_left=len(classes) - MAX_CLASSES,
        signals=[
            _signal(mover, reference.signals[mover.signal], counts, reference.labels.names) for mover in finding.movers
        ],
        examples=outliers.shown(outliers.chosen(entries, finding.movers, reference)),
        silent=_silent(finding, reference),
        about=card[1].replace("**", "") if len(card) > 1 else "",
    )


def write(path: Path, page: str) -> None:
    """Write the page, completely or not at all. Raises LooplineError if it cannot be written."""
    if not path.parent.is_dir():
        raise LooplineError(f"{path} cannot be written: make the folder {path.parent} first")
    try:
        files.write(path, page)
    except OSError as error:
        raise LooplineError(f"{path} cannot be written: {error.strerror}") from error


def _figures(finding: Finding, reference: Reference) -> dict[str, str]:
    if finding.harm is None:
        return {}
    harm = finding.harm
    figures = {"on the reference": f"{reference.quality.value:.3f}"}
    figures |= {f"estimated by {way}": f"{value:.3f}" for way, value in harm.estimates.items()}
    figures |= {"loss by classes, points": f"{100 * harm.classes:.1f}", "loss, points": f"{100 * harm.loss:.1f}"}
    return figures | {"harm over, points": f"{100 * harm.limit:.1f}"}


def _mix(finding: Finding, reference: Reference) -> str:
    """A sentence on whether a new mix of the same classes explains what moved; empty if it is unknown."""
    mix = finding.mix
    if mix is None:
        return ""
    if mix.further:
        most = max(mix.further, key=lambda mover: mover.shift)
        return (
            f"More changed than the mix of classes: {most.signal} moved by {most.shift:.2f}, further than a new mix can move it. "
            "The estimate below holds only for a new mix."
        )
    if mix.loss > reference.quality.max_loss:
        return (
            f"More changed than the mix of classes: {100 * mix.loss:.1f} points are lost beyond what a new mix costs. "
            "The estimate below holds only for a new mix."
        )
    return "This looks like label shift: a new mix of the same classes explains all that moved."


def _classes(finding: Finding, reference: Reference) -> list[tuple[str, tuple[float, float, float]]]:
    """Each class with its three shares: reference, predicted, estimated. The class that changed most comes first."""
    if (mix := finding.mix) is None:
        return []
    shares = zip(mix.before, mix.predicted, mix.estimated, strict=True)
    return sorted(zip(reference.labels.names, shares, strict=True), key=lambda row: -abs(row[1][2] - row[1][0]))


def _signal(mover: Mover, signal: Signal, counts: WindowCounts, labels: tuple[str, ...]) -> dict[str, Any]:
    now, before = counts[mover.signal], np.array(signal.counts)
    bars = [
        {"words": words, "was": was, "share": share}
        for words, was, share in zip(
            _bins(mover.signal, signal, labels), before / before.sum(), now / now.sum(), strict=True
        )
    ]
    if not bars[-1]["was"] and not bars[-1]["share"]:
        bars.pop()  # the last bin counts samples without a number, of which there are none
    means = ""
    if mover.before is not None or mover.value is not None:
        means = ", mean " + " → ".join(verdict.figure(value, 3) for value in (mover.before, mover.value))
    return {
        "mover": mover,
        "bars": bars,
        "top": max(max(bar["was"], bar["share"]) for bar in bars),
        "axis": _axis(mover.signal, signal, labels, len(bars)),
        "means": means,
    }


def _silent(finding: Finding, reference: Reference) -> dict[str, list[str]]:
    """The signals without a verdict, by the reason."""
    signals: dict[str, list[str]] = {}
    for name, n in finding.silent.items():
        reason = f"{n:.0f} samples, {reference.least} are needed" if n >= 0.5 else "no request carried it"
        signals.setdefault(reason, []).append(name)
    return signals


def _bins(name: str, signal: Signal, labels: tuple[str, ...]) -> list[str]:
    """A description of each bin of a signal."""
    if name == CLASS:
        return [*labels, "none"]
    edges = [verdict.figure(edge) for edge in signal.edges]
    between = [f"{low} to {high}" for low, high in pairwise(edges)]
    return [f"under {edges[0]}", *between, f"{edges[-1]} and more", "no number"]


def _axis(name: str, signal: Signal, labels: tuple[str, ...], bins: int) -> list[tuple[str, str]]:
    """The marks under a picture: pairs of the position from the left in percent, and a text.

    The marks are some edges, or the classes: all of them where they fit, else the first and the last.
    """
    if name == CLASS:
        fit = sum(map(len, labels)) + 2 * len(labels) <= AXIS
        marks = {i + 0.5: f"{label:.9}" for i, label in enumerate(labels) if fit or i in (0, len(labels) - 1)}
    else:
        places = sorted({0, len(signal.edges) // 2, len(signal.edges) - 1})
        texts = [verdict.figure(signal.edges[i], 3) for i in places]
        marks = {i + 1.0: text for i, text in zip(places, texts, strict=True) if not i or text != texts[0]}
    if bins == len(signal.counts):  # the bin "none" is drawn: its mark needs the space of the one before
        marks.pop(max(marks))
        marks[bins - 0.5] = "none"
    return [(f"{100 * at / bins:.1f}", text) for at, text in marks.items()]
