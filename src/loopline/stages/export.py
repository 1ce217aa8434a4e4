"""Export the model of `models/<model>/train/` to ONNX and check that torch and ONNX agree.

Writes `model.onnx` (dynamic batch; takes uint8 images or token ids), `spec.json` and `parity.json` to `models/<model>/export/`.
Run by `dvc repro export@<model>`.
"""

from __future__ import annotations

from loopline import settings, tasks
from loopline.data import manifest
from loopline.lib import sessions
from loopline.stages import stage_files
from loopline.training import parity

PARITY_SAMPLES = 64


def main(name: str) -> None:
    """Export `name`. Raises LooplineError if the parity tolerance is exceeded, so no later stage runs on a wrong graph."""
    _, model = settings.model(name)
    task = tasks.find(model.task)
    trainer = task.trainer()
    trained, out = stage_files.stage(name, "train"), stage_files.stage(name, "export")
    train = manifest.load_split(stage_files.manifest(name), "train")
    val = manifest.load_split(stage_files.manifest(name), "val")
    spec = trainer.export(trained, train, val, model, out=out / "model.onnx")
    stage_files.write_json(out / "spec.json", spec.to_dict())

    inputs = task.preprocessor(spec, trained)(val.inputs[:PARITY_SAMPLES])
    differences = parity.check(
        trainer.reference(trained)(inputs),
        sessions.run(out / "model.onnx", inputs),
        tolerance=model.export.tolerance,
        what="torch and FP32 ONNX",
    )
    report = {"samples": len(next(iter(inputs.values()))), "tolerance": model.export.tolerance}
    rounded = {output: float(f"{value:.1g}") for output, value in differences.items()}
    stage_files.write_json(out / "parity.json", report | {"largest_difference": rounded})
