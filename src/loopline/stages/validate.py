"""Stop bad data before it is trained on: `loopline stage validate MODEL`.

Reads `manifest.parquet` and `ingest.json` in `data/<model>/`; writes `validation.json` beside them and, outside of git,
`reports/<model>/validation.html` and Great Expectations' Data Docs in `reports/<model>/data_docs/`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from loopline import settings
from loopline.data import expectations, report
from loopline.errors import LooplineError
from loopline.stages import files


def main(name: str) -> None:
    """Check the manifest of model `name`. Raises LooplineError where a check fails, after the reports are written."""
    _, model = settings.model(name)
    manifest, folder = files.manifest(name), Path("reports") / name
    ingest = files.read_json(manifest.with_name("ingest.json"))
    result = expectations.check(manifest, ingest, model, docs=folder / "data_docs")
    page = folder / "validation.html"
    files.write_text(page, report.html(name, result, ingest))
    files.write_json(manifest.with_name("validation.json"), {"passed": not result.failed, **asdict(result)})
    if result.failed:
        sentences = "".join(f"\n  - {check.sentence} {_seen(check)}\n    {check.remedy}" for check in result.failed)
        raise LooplineError(
            f"{manifest} failed {len(result.failed)} check(s):{sentences}\nThe offending rows are in {page}"
        )


def _seen(check: expectations.Check) -> str:
    first = f", as {check.examples[0]}" if check.examples else ""
    return f"(seen: {check.observed}{first})"
