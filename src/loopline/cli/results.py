"""The pipeline's summaries: one line when a stage ends, and one table of all models at the end of `make repro`.

They come from the files that the stages wrote to `data/<model>/` and `models/<model>/`. Each stage's seconds are stored in
`.loopline/timings/<model>/`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loopline.errors import LooplineError
from loopline.stages import stage_files
from loopline.training.progress_bar import duration

HEADER = ("model", "on the test split [95 % interval]", "simple model", "ships", "size", "time")


def keep_seconds(model: str, stage: str, seconds: float) -> None:
    """Store how many seconds a stage took on this machine."""
    path = stage_files.scratch("timings", model) / "stages.json"
    timings = stage_files.read_json(path) if path.exists() else {}
    stage_files.write_json(path, timings | {stage: round(seconds, 1)})


def line(stage: str, model: str) -> str | None:
    """The summary of a stage that has ended; None for a stage that prints its own."""
    summary = LINES.get(stage)
    return f"{model}: {summary(Path('data') / model, Path('models') / model)}" if summary else None


def _ingest(data: Path, _: Path) -> str:
    counts = stage_files.read_json(data / "ingest.json")
    aside = sum(reason["count"] for reason in counts["set_aside"].values())
    splits = ", ".join(f"{split} {count:,}" for split, count in counts["splits"].items())
    classes = f", {len(counts['classes'])} classes" if counts["classes"] else ""
    return f"{counts['samples']:,} samples, {aside:,} set aside, {splits}{classes}"


def _validate(data: Path, _: Path) -> str:
    return f"{len(stage_files.read_json(data / 'validation.json')['checks'])} checks of the data passed"


def _train(_: Path, models: Path) -> str:
    with (models / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    # Training keeps the epoch with the highest average precision if that is measured, or else with the lowest loss.
    best = max(rows, key=lambda row: float(row["map50_95"] if "map50_95" in row else f"-{row['val_loss']}"))
    figures = ", ".join(f"{key} {float(value):.4g}" for key, value in best.items() if key != "epoch")
    if len(rows) == 1 and "train_loss" not in best:
        return f"not trained, only measured: {figures}"
    what = "fitted with {} penalties" if "strength" in best else "trained {} epochs"
    return f"{what.format(len(rows))}, the best is {best['epoch']}: {figures}"


def _export(_: Path, models: Path) -> str:
    parity = stage_files.read_json(models / "export" / "parity.json")
    largest = max(parity["largest_difference"].values())
    size = _size((models / "export" / "model.onnx").stat().st_size)
    return f"ONNX of {size}, differs from torch by {largest:g} at most, {parity['tolerance']:g} is allowed"


def _calibrate(_: Path, models: Path) -> str:
    drift = stage_files.read_json(models / "calibrate" / "drift.json")
    promise = drift["promise"]
    return (
        f"drift reference of {drift['samples']:,} samples and {len(drift['signals'])} signals, "
        f"chance of a false alarm {promise['false_alarms']:g} in {promise['windows']} windows"
    )


def _package(_: Path, models: Path) -> str:
    from loopline.release import bundle

    return f"bundle {bundle.version(models / 'bundle'):.12} in {models / 'bundle'}"


LINES: dict[str, Callable[[Path, Path], str]] = {
    "ingest": _ingest,
    "validate": _validate,
    "train": _train,
    "export": _export,
    "calibrate": _calibrate,
    "package": _package,
}


def table(models: Sequence[str]) -> str:
    """A table with a row for each model, and the next step. Raises LooplineError if no model has a report."""
    rows = [_row(model) for model in models if (Path("models") / model / "report.json").exists()]
    if not rows:
        raise LooplineError(f"no results of {', '.join(models)} yet: run `make repro` first")
    widths = [max(len(row[column]) for row in [HEADER, *rows]) for column in range(len(HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [HEADER, *rows]
    ]
    chosen = f" MODEL={models[0]}" if len(models) == 1 else ""
    return "\n".join(
        [
            *lines,
            "",
            f"Next: `make serve{chosen}`. More figures: `dvc metrics show`, models/*/report.json, `make mlflow`",
        ]
    )


def _row(model: str) -> tuple[str, ...]:
    folder = Path("models") / model
    report, verdict = stage_files.read_json(folder / "report.json"), folder / "quantize" / "verdict.json"
    seconds = stage_files.SCRATCH / "timings" / model / "stages.json"
    return (
        model,
        _headline(report),
        f"{report['baselines']['simple']['value']:.3f}",
        stage_files.read_json(verdict)["chosen"].upper() if verdict.exists() else "-",
        _size(report["model_bytes"]),
        duration(sum(stage_files.read_json(seconds).values())) if seconds.exists() else "-",
    )


def _headline(report: dict[str, Any]) -> str:
    figure = report["metrics"][report["headline"]]
    return f"{report['headline']} {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} KB"
