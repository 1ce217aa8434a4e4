"""Stop bad data before it is trained on: `loopline stage validate MODEL`.

Reads `manifest.parquet` and `ingest.json` in `data/<model>/`; writes `validation.json` beside them and, outside of git,
`reports/<model>/validation.html` and Great Expectations' Data Docs in `reports/<model>/data_docs/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loopline import settings, tasks
from loopline.data import expectations, similar, validation_page
from loopline.errors import LooplineError
from loopline.lib.files import write
from loopline.stages import stage_files

# What pandas, R, Excel and others write for "no value"
ABSENT = {"nan", "null", "none", "n/a", "na", "<na>", "nil", "#n/a"}


def main(name: str) -> None:
    """Check the manifest of model `name`. Raises LooplineError if a check fails, after the reports are written."""
    _, model = settings.model(name)
    manifest, folder = stage_files.manifest(name), Path("reports") / name
    ingest = stage_files.read_json(manifest.with_name("ingest.json"))
    result = expectations.check(manifest, ingest, model, docs=folder / "data_docs")
    page = folder / "validation.html"
    # Near copies are sought only in data that passed
    near = None if result.failed else similar.across_splits(manifest, tasks.find(model.task).content)
    warnings = _warnings(near, ingest, list(result.counts))
    write(page, validation_page.html(name, result, ingest, warnings))
    verdict = {"passed": not result.failed, **asdict(result), "warnings": warnings}
    stage_files.write_json(manifest.with_name("validation.json"), verdict | {"near_copies": near and asdict(near)})
    for warning in warnings:
        print(f"{name}: warning: {warning}")
    if result.failed:
        sentences = "".join(f"\n  - {check.sentence} {_seen(check)}\n    {check.remedy}" for check in result.failed)
        raise LooplineError(
            f"{manifest} failed {len(result.failed)} check(s):{sentences}\nThe offending rows are in {page}"
        )


def _warnings(near: similar.NearCopies | None, ingest: Mapping[str, Any], labels: Sequence[str]) -> list[str]:
    """Return what a person should look at although it does not stop the pipeline."""
    warnings = [
        f"classes that may be one: {', '.join(map(repr, alike))}. Write each class in one way"
        for alike in _alike(labels)
    ]
    if absent := [label for label in labels if label.casefold() in ABSENT]:
        warnings.append(
            f"a class is called {absent[0]!r}, as tables write a missing label: fill it, or leave the row out"
        )
    if near and near.count:
        warnings.append(
            f"{near.sentence()}. Frames of one video belong together: see split.group in docs/bring-your-own-data.md"
        )
    if torn := ingest.get("groups", {}).get("torn", {}).get("count", 0):
        examples = ", ".join(ingest["groups"]["torn"]["examples"])
        warnings.append(f"{torn:,} groups are in more than one split, as published: {examples}")
    return warnings


def _alike(labels: Sequence[str]) -> list[list[str]]:
    """Return groups of classes that differ only in upper and lower case, or are the same number: Cat and cat, 1 and 1.0."""
    groups: dict[Any, list[str]] = {}
    for label in labels:
        try:
            groups.setdefault(float(label), []).append(label)
        except ValueError:
            groups.setdefault(label.casefold(), []).append(label)
    return [alike for alike in groups.values() if len(alike) > 1]


def _seen(check: expectations.Check) -> str:
    first = f", as {check.examples[0]}" if check.examples else ""
    return f"(seen: {check.observed}{first})"
