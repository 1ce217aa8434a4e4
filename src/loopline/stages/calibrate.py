"""The drift reference: how each signal is distributed on validation data, through the model that ships.

Writes `models/<model>/calibrate/drift.json`: for each signal the inner edges of bins of equal mass and the reference counts.
Run by `dvc repro calibrate@<model>`.
"""

from __future__ import annotations

from importlib import import_module

from loopline import settings
from loopline.data import manifest
from loopline.release import runner
from loopline.stages import files
from loopline.tasks import signals
from loopline.tasks.spec import ModelSpec

SCHEMA_VERSION = 1


def main(name: str) -> None:
    """Count the reference of `name`."""
    _, model = settings.model(name)
    task = import_module(f"loopline.tasks.{model.task}")
    spec = ModelSpec.from_dict(files.read_json(files.stage(name, "export") / "spec.json"))
    val = manifest.load_split(files.manifest(name), "val")
    inputs = task.preprocessor(spec, files.stage(name, "train"))(val.inputs)
    outputs = runner.run(files.stage(name, "quantize") / "model.onnx", inputs)

    reference = {}
    for signal, values in signals.signals(inputs, val.inputs, outputs, spec).items():
        edges = signals.bin_edges(values, model.calibrate.bins)
        reference[signal] = {
            "edges": [float(f"{edge:.6g}") for edge in edges],
            "counts": signals.bin_counts(values, edges).tolist(),
        }
    content = {"schema": SCHEMA_VERSION, "samples": len(val.ids), "signals": reference}
    files.write_json(files.stage(name, "calibrate") / "drift.json", content)
