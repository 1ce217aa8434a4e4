"""`loopline drift report`: one HTML file about a bundle and a window of its traffic, without scripts or outside assets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np

from loopline.drift import reference as drift
from loopline.drift import verdict
from loopline.drift.reference import Reference, Signal
from loopline.drift.statistic import Mover, WindowCounts
from loopline.drift.verdict import Finding
from loopline.errors import LooplineError
from loopline.journal.reader import Entry
from loopline.lib import files
from loopline.observability import outliers, prometheus_api
from loopline.release.bundle import Bundle, read
from loopline.tasks.signals import CLASS

STYLE = Path(__file__).with_suffix(".css")
MAX_CLASSES = 12  # rows of the table of classes
JOURNALLED = 1000  # latest samples to choose examples from
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
    """Write the page about the bundle in `folder` to `out`; returns the verdict. Raises LooplineError.

    The counts are those of a window that ends at `at` (default: now), or, with url, those of that server since its start. journal: its
    folder, which examples are taken from.
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
    """The page. source: where the counts come from, and of which time. entries: of the journal, for examples."""
    finding, name = verdict.judge(counts, reference), escape(bundle.manifest.name)
    tone = ("bad" if finding.harmful else "so") if finding.drifted else "good" if finding.movers else "none"
    card = (bundle.folder / "MODEL_CARD.md").read_text(encoding="utf-8").split("\n\n")
    parts = [
        f'<h1>Drift of <em>{name}</em></h1><p class="soft">Version <code>{bundle.version[:12]}</code>. {escape(source)}</p>',
        f'<p class="verdict {tone}">{escape(verdict.sentence(finding, reference))}</p>',
        _quality(finding, reference),
        _classes(finding, reference),
        _signals(finding, reference, counts),
        outliers.html(outliers.chosen(entries, finding.movers, reference)),
        _silent(finding, reference),
        f"<h2>The model</h2><section><p>{escape(card[1].replace('**', '')) if len(card) > 1 else ''}</p>"
        f'<p class="soft">Its reference has {reference.samples} samples that it was not trained on.</p></section>',
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{"Drift" if finding.drifted else "No drift" if finding.movers else "No verdict"}: {name}</title>
<style>{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body><main>
{"".join(parts)}
</main></body>
</html>
"""


def write(path: Path, page: str) -> None:
    """Whole or not at all. Raises LooplineError where it cannot be written."""
    try:
        files.write(path, page)
    except OSError as error:
        raise LooplineError(f"{path} cannot be written: {error.strerror}") from error


def _quality(finding: Finding, reference: Reference) -> str:
    if finding.harm is None:
        return ""
    quality, cost = reference.quality, finding.harm
    figures = {"on the reference": f"{quality.value:.3f}"}
    figures |= {f"estimated by {way}": f"{value:.3f}" for way, value in cost.estimates.items()}
    figures |= {"loss by classes, points": f"{100 * cost.classes:.1f}", "loss, points": f"{100 * cost.loss:.1f}"}
    figures |= {"harm over, points": f"{100 * cost.limit:.1f}"}
    cells = "".join(f"<div><dt>{escape(key)}</dt><dd>{value}</dd></div>" for key, value in figures.items())
    return (
        f'<h2>Estimated {escape(quality.metric)}</h2><dl class="figures">{cells}</dl>'
        f'<p class="soft">No labels are needed: confidence counts each sample with the quality that samples as sure as it had on the '
        f"reference, atc counts those surer than a threshold. The loss is from the mean of both, or from the shift of the predicted "
        f"classes where that is larger and no new mix of the same classes explains it; here it is from {cost.way}.</p>"
    )


def _classes(finding: Finding, reference: Reference) -> str:
    mix = finding.mix
    if mix is None:
        return ""
    if mix.further:
        most = max(mix.further, key=lambda mover: mover.shift)
        said = (
            f"More changed than the mix of classes: {most.signal} moved by {most.shift:.2f}, further than a new mix can move it. "
            "The estimate below holds only for a new mix."
        )
    elif mix.loss > reference.quality.max_loss:
        said = (
            f"More changed than the mix of classes: {100 * mix.loss:.1f} points are lost beyond what a new mix costs. "
            "The estimate below holds only for a new mix."
        )
    else:
        said = "This looks like label shift: a new mix of the same classes explains all that moved."
    rows = zip(reference.labels.names, mix.before, mix.predicted, mix.estimated, strict=True)
    largest = sorted(rows, key=lambda row: -abs(row[3] - row[1]))
    cells = "".join(
        f"<tr><th>{escape(label)}</th>{''.join(f'<td>{100 * share:.1f} %</td>' for share in shares)}</tr>"
        for label, *shares in largest[:MAX_CLASSES]
    )
    left = len(largest) - MAX_CLASSES
    more = f'<p class="soft">and {left} classes that changed less</p>' if left > 0 else ""
    return (
        f"<h2>Mix of classes</h2><section><p>{escape(said)}</p><table><thead><tr><th>class</th><th>reference</th><th>predicted</th>"
        f"<th>estimated</th></tr></thead><tbody>{cells}</tbody></table>{more}</section>"
    )


def _signals(finding: Finding, reference: Reference, counts: WindowCounts) -> str:
    if not finding.movers:
        return ""
    cards = [
        _signal(mover, reference.signals[mover.signal], counts, reference.labels.names) for mover in finding.movers
    ]
    key = "".join(
        f'<span><svg viewBox="0 0 1 1"><rect width="1" height="1" class="{kind}"/></svg> {words}</span>'
        for kind, words in (("was", "reference"), ("is", "this window"))
    )
    return (
        f'<h2>Signals, what moved most first</h2><div class="key soft">{key}<span>share of the samples in each bin</span></div>'
        f'<div class="signals">{"".join(cards)}</div>'
    )


def _signal(mover: Mover, signal: Signal, counts: WindowCounts, labels: tuple[str, ...]) -> str:
    now, before = counts[mover.signal], np.array(signal.counts)
    shares = list(zip(_bins(mover.signal, signal, labels), before / before.sum(), now / now.sum(), strict=True))
    if not shares[-1][1] and not shares[-1][2]:
        shares.pop()  # all are numbers
    top = max(max(was, share) for _, was, share in shares)
    bars = "".join(
        f"<g><title>{escape(words)}: {100 * share:.1f} %, reference {100 * was:.1f} %</title>"
        f'<rect class="was" x="{x + 0.05:.2f}" width=".9" y="{1 - was / top:.4f}" height="{was / top:.4f}"/>'
        f'<rect class="is" x="{x + 0.27:.2f}" width=".46" y="{1 - share / top:.4f}" height="{share / top:.4f}"/></g>'
        for x, (words, was, share) in enumerate(shares)
    )
    means = ""
    if mover.before is not None or mover.value is not None:
        means = ", mean " + " → ".join(verdict.figure(value, 3) for value in (mover.before, mover.value))
    return (
        f"<article{' class=alarm' if mover.score > 1 else ''}><header><h3>{escape(mover.signal)}</h3>"
        f'<span class="score">{mover.score:.2f}</span></header>'
        f'<svg viewBox="0 0 {len(shares)} 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(mover.signal)}: shares of bins, window and reference">{bars}</svg>'
        f'<div class="axis">{_axis(mover.signal, signal, labels, len(shares))}</div>'
        f'<p class="soft">shift {mover.shift:.2f}{means}, n&nbsp;{mover.n}</p></article>'
    )


def _silent(finding: Finding, reference: Reference) -> str:
    groups: dict[str, list[str]] = {}
    for name, n in finding.silent.items():
        why = f"{n:.0f} samples, {reference.least} are needed" if n >= 0.5 else "no request carried it"
        groups.setdefault(why, []).append(name)
    items = "".join(f"<li>{why}: {escape(', '.join(names))}</li>" for why, names in groups.items())
    return f"<h2>Without a verdict</h2><section><ul>{items}</ul></section>" if items else ""


def _bins(name: str, signal: Signal, labels: tuple[str, ...]) -> list[str]:
    """What is in each bin, in words."""
    if name == CLASS:
        return [*labels, "none"]
    edges = [verdict.figure(edge) for edge in signal.edges]
    between = [f"{low} to {high}" for low, high in pairwise(edges)]
    return [f"under {edges[0]}", *between, f"{edges[-1]} and more", "no number"]


def _axis(name: str, signal: Signal, labels: tuple[str, ...], bins: int) -> str:
    """Some edges, or the classes where they fit, in their places under the picture."""
    if name == CLASS:
        every = sum(map(len, labels)) + 2 * len(labels) <= AXIS
        marks = {i + 0.5: f"{label:.9}" for i, label in enumerate(labels) if every or i in (0, len(labels) - 1)}
    else:
        places = sorted({0, len(signal.edges) // 2, len(signal.edges) - 1})
        texts = [verdict.figure(signal.edges[i], 3) for i in places]
        marks = {i + 1.0: text for i, text in zip(places, texts, strict=True) if not i or text != texts[0]}
    if bins == len(signal.counts):  # its name needs the room of the mark before it
        marks.pop(max(marks))
        marks[bins - 0.5] = "none"
    return "".join(f'<span style="left:{100 * at / bins:.1f}%">{escape(text)}</span>' for at, text in marks.items())
