"""Examples for the drift report: samples of the journal from the bins that grew most, in the signals that moved most."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from loopline.drift import verdict
from loopline.drift.reference import Reference, bin_of
from loopline.drift.statistic import Mover
from loopline.journal.reader import Entry
from loopline.tasks.signals import CLASS

EACH, SIGNALS = 4, 3  # number of examples of a signal, number of signals
LONGEST = 300  # characters of a text that are shown
KINDS = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"RIFF": "webp"}


def chosen(entries: Sequence[Entry], movers: Sequence[Mover], reference: Reference) -> dict[str, list[Entry]]:
    """The examples by signal, from the bins whose share grew most. No sample occurs twice."""
    examples: dict[str, list[Entry]] = {}
    used: set[str] = set()
    for mover in [mover for mover in movers if mover.signal != CLASS and mover.score > 1][:SIGNALS]:
        candidates = [entry for entry in entries if mover.signal in entry.signals and entry.input is not None]
        if not candidates:
            continue
        signal = reference.signals[mover.signal]
        bins = bin_of(np.array([entry.signals[mover.signal] for entry in candidates]), np.array(signal.edges))
        grown = np.bincount(bins, minlength=len(signal.counts)) / len(bins) - np.array(signal.counts) / sum(
            signal.counts
        )
        order = sorted(range(len(candidates)), key=lambda row, grown=grown, bins=bins: -grown[bins[row]])  # type: ignore[misc]
        unused = [candidates[row] for row in order if candidates[row].id not in used][:EACH]
        used |= {entry.id for entry in unused}
        examples[mover.signal] = unused
    return examples


def shown(entries_by_signal: dict[str, list[Entry]]) -> list[dict[str, Any]]:
    """The fields of each example that the page shows. An image is a data URL, so that the page fetches nothing."""
    examples = []
    for signal, entries in entries_by_signal.items():
        for entry in entries:
            example = {"signal": signal, "value": verdict.figure(entry.signals[signal], 3), "image": None, "text": None}
            if isinstance(entry.input, bytes):
                kind = next((kind for start, kind in KINDS.items() if entry.input.startswith(start)), "png")
                data = base64.b64encode(entry.input).decode("ascii")
                example["image"] = f"data:image/{kind};base64,{data}"
            else:
                text = entry.input or ""
                example["text"] = text[:LONGEST] + ("…" if len(text) > LONGEST else "")
            boxes = entry.prediction.get("boxes")
            example["answer"] = f"{len(boxes)} boxes" if boxes is not None else str(entry.prediction.get("label"))
            example["truth"] = entry.label if isinstance(entry.label, str) else None
            examples.append(example)
    return examples
