"""Measure the model that ships on the test split, and refuse it if it is not good enough.

Writes to `models/<model>/`: `report.json`, its dozen main figures as `metrics.json` for `dvc metrics` and `dvc exp show`, tables for
`dvc plots` in `plots/`, and pictures in `pictures/`.
Fails if a metric is below its floor in params.yaml or the model does not beat the simple one. Run by `dvc repro evaluate@<model>`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loopline import settings, tasks
from loopline.data import manifest
from loopline.errors import LooplineError
from loopline.lib import machine, sessions
from loopline.lib.arrays import Arrays
from loopline.stages import stage_files
from loopline.tasks import curves
from loopline.tasks.base import Task
from loopline.tasks.spec import ModelSpec
from loopline.training import pictures, quality_report


def main(name: str) -> None:
    """Evaluate `name`. Raises LooplineError with every reason if the model must not ship; the report is written first."""
    everything, model = settings.model(name)
    task = tasks.find(model.task)
    spec = ModelSpec.from_dict(stage_files.read_json(stage_files.stage(name, "export") / "spec.json"))
    splits = {split: manifest.load_split(stage_files.manifest(name), split) for split in manifest.SPLITS}
    test = splits["test"]
    preprocess = task.preprocessor(spec, stage_files.stage(name, "train"))
    inputs = preprocess(test.inputs)
    path = stage_files.stage(name, "quantize") / "model.onnx"
    outputs = sessions.run(path, inputs)

    options, seed, evaluator = model.evaluate, everything.seed, task.evaluator()
    report = quality_report.measure(task, outputs, inputs, test, spec, options, seed)
    simple = evaluator.simple(splits, preprocess, inputs, spec, seed=seed)
    majority = evaluator.majority(splits["train"], test, spec)
    report["baselines"] = quality_report.compare(task, outputs, simple, majority, test, spec, options, seed)
    if (untaught := stage_files.stage(name, "train") / stage_files.UNTAUGHT).exists():
        report["baselines"] |= quality_report.teaching(task, outputs, inputs, untaught, test, spec, options, seed)
    if options.unjudged:
        report["unjudged"] = True
    report["model_bytes"] = path.stat().st_size
    # Without the processor's name: machines of one kind have different processors and must write the same file.
    report["machine"] = machine.kind()
    folder, classes = Path("models") / name, stage_files.manifest(name).with_name("classes.csv")
    stage_files.write_json(folder / "report.json", report)
    stage_files.write_json(folder / "metrics.json", quality_report.summary(report))
    _tables(folder / "plots", task, outputs, test, spec)
    history, drawn = folder / "history.csv", stage_files.stage(name, "pictures")
    pictures.draw(drawn, task, outputs, test, spec, history=history, classes=classes)
    single = {key: value[:1] for key, value in inputs.items()}
    milliseconds = min(sessions.side_by_side(path, path, single).values()) * 1e3
    stage_files.write_json(stage_files.scratch("timings", name) / "evaluate.json", {"batch_1_ms": milliseconds})
    headline = report["metrics"][task.headline]
    print(
        f"{name}: {task.headline} {headline['value']} [{headline['low']}, {headline['high']}] on {report['n']:,} test samples; "
        f"{quality_report.versus_simple(report)}"
    )
    if options.unjudged:
        print(f"{name}: evaluate.unjudged is set, so the model ships although no gate judged its quality")
    elif reasons := quality_report.objections(report, options):
        raise LooplineError(
            f"{name} must not ship:\n  " + "\n  ".join(reasons) + f"\nSee models/{name}/report.json. "
            f"Floors belong to a data set: models.{name}.evaluate.floors in params.yaml should fit {model.dataset!r}, and "
            f"must_beat_simple: false lets a model ship without a gain over the simple one. "
            f"No bundle was packaged: models/{name}/bundle, if present, is an earlier one"
        )


def _tables(folder: Path, task: Task, outputs: Arrays, test: manifest.Split, spec: ModelSpec) -> None:
    rows, names = task.pairs(outputs, test, spec)
    stage_files.write_csv(folder / "confusion.csv", ["actual", "predicted"], [[names[a], names[p]] for a, p in rows])
    ranked = task.ranked(outputs, test, spec)
    points = np.stack(curves.precision_recall(curves.pool(ranked)), 1).tolist() if ranked else []
    stage_files.write_csv(folder / "precision_recall.csv", ["recall", "precision"], points)
    bins = curves.reliability(*task.confidences(outputs, test, spec))
    stage_files.write_csv(folder / "reliability.csv", ["confidence", "accuracy", "count"], [list(row) for row in bins])
