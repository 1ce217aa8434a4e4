"""The readable page of a validation: one HTML file without scripts or outside assets, fit for a phone and the dark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from loopline.data.expectations import Check, Result
from loopline.data.manifest import SPLITS

MAX_CLASSES = 50  # more bars than this and nobody reads them
STYLE = Path(__file__).with_suffix(".css")


def html(name: str, result: Result, ingest: Mapping[str, Any], warnings: Iterable[str] = ()) -> str:
    """The page for model `name`. ingest: `{"set_aside": {reason: {"count": n, "examples": [...]}}}`."""
    failed, passed = result.failed, [check for check in result.checks if check.passed]
    if failed:
        verdict = f"{len(failed)} of {len(result.checks)} checks failed: nothing is trained on this data."
    else:
        verdict = f"All {len(result.checks)} checks passed."
    parts = [
        f"<h1>Data of <em>{escape(name)}</em></h1>",
        f'<p class="verdict {"bad" if failed else "good"}">{verdict}</p>',
        _figures(result),
        *(f'<section class="failed"><h3>Warning</h3><p>{escape(warning)}</p></section>' for warning in warnings),
        *(["<h2>Failed</h2>", *map(_failed, failed)] if failed else []),
        _distribution(result),
        _set_aside(ingest),
        *(
            ["<h2>Passed</h2>", _lines((escape(check.sentence), escape(check.observed)) for check in passed)]
            if passed
            else []
        ),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{"Failed" if failed else "Passed"}: data of {escape(name)}</title>
<style>{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body><main>
{"".join(parts)}
<p class="soft last">Every detail is in <a href="data_docs/index.html">Great Expectations' Data Docs</a>
(which load styles from the network; this page does not).</p>
</main></body>
</html>
"""


def _figures(result: Result) -> str:
    things = "boxes" if result.task == "detection" else "samples"
    figures = {"samples": result.samples, "classes": len(result.counts)}
    for split in SPLITS:
        figures[f"{things} in {split}"] = sum(counts[split] for counts in result.counts.values())
    cells = [f"<div><dt>{name}</dt><dd>{number:,}</dd></div>" for name, number in figures.items()]
    return f'<dl class="figures">{"".join(cells)}</dl>'


def _failed(check: Check) -> str:
    examples = "".join(f"<li>{escape(example)}</li>" for example in check.examples)
    return (
        f'<section class="failed"><h3>{escape(check.sentence)}</h3><p class="soft">Seen: {escape(check.observed)}</p>'
        f"{f'<ul>{examples}</ul>' if examples else ''}<p>{_code(check.remedy)}</p></section>"
    )


def _code(words: str) -> str:
    """Words between backticks become code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(words))


def _distribution(result: Result) -> str:
    """A stacked bar a class, largest first."""
    rows = sorted(result.counts.items(), key=lambda row: -sum(row[1].values()))
    if not rows:
        return ""
    longest = max(1, sum(rows[0][1].values()))
    key = "".join(
        f'<span><svg viewBox="0 0 1 1"><rect width="1" height="1" class="{s}"/></svg> {s}</span>' for s in SPLITS
    )
    bars = [_bar(label, counts, longest) for label, counts in rows[:MAX_CLASSES]]
    more = f'<p class="soft">and {len(rows) - MAX_CLASSES} smaller classes</p>' if len(rows) > MAX_CLASSES else ""
    drawn = f'<div class="bars">{"".join(bars)}</div>'
    things = "Boxes" if result.task == "detection" else "Samples"
    return f'<h2>{things} of each class</h2><section><div class="key soft">{key}</div>{drawn}{more}</section>'


def _bar(label: str, counts: Mapping[str, int], longest: int) -> str:
    start, rects = 0.0, []
    for split in SPLITS:
        width = 100 * counts[split] / longest
        rects.append(f'<rect class="{split}" x="{start:.2f}" width="{width:.2f}" height="1"/>')
        start += width
    words = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS)
    drawn = (
        f'<svg viewBox="0 0 100 1" preserveAspectRatio="none" role="img"><title>{words}</title>{"".join(rects)}</svg>'
    )
    name = escape(label, quote=True)
    return f'<div class="row"><span title="{name}">{name}</span>{drawn}<span>{sum(counts.values()):,}</span></div>'


def _set_aside(ingest: Mapping[str, Any]) -> str:
    """What ingest set aside, samples before boxes, and the files that it left out, the most frequent reason first."""
    parts = (
        ("", ingest["set_aside"]),
        ("box: ", ingest.get("boxes", {}).get("set_aside", {})),
        ("file left out: ", ingest.get("left_out", {})),
    )
    lines = []
    for thing, reasons in parts:
        for reason, found in sorted(reasons.items(), key=lambda one: (-one[1]["count"], one[0])):
            examples = ", ".join(map(escape, found.get("examples", ())))
            more = f'<div class="soft">{examples}</div>' if examples else ""
            lines.append((f"{thing}{escape(reason)}{more}", f"{found['count']:,}"))
    body = _lines(lines) if lines else "<section>Nothing: every sample could be used.</section>"
    return f"<h2>Set aside at ingest</h2>{body}"


def _lines(lines: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<li><div>{words}</div><span>{figure}</span></li>" for words, figure in lines)
    return f'<section><ul class="lines">{items}</ul></section>'
