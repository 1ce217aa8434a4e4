"""Choose the model that ships: INT8 if it is as good, smaller and not clearly slower, else FP32.

Calibrates on training samples and judges on the validation split: by a paired bootstrap for the accuracy, and by running both
models side by side for the speed. Writes `model.onnx` (the chosen one) and `verdict.json` to `models/<model>/quantize/`. Timings
differ between runs, so they go to `.loopline/timings/`, never into an output. Run by `dvc repro quantize@<model>`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline import settings, tasks
from loopline.data import manifest
from loopline.lib import sessions
from loopline.lib.arrays import Arrays
from loopline.lib.files import replacing
from loopline.lib.machine import cpu_features
from loopline.stages import stage_files
from loopline.tasks import bootstrap
from loopline.tasks.spec import ModelSpec
from loopline.training import quantization

CLEARLY_SLOWER = 2 / 3  # of FP32's speed: `promotion.max_latency_ratio` refuses a model that takes 1.5 times as long
ROUNDS = 61  # pairs of timings, which take about a second


def main(name: str) -> None:
    """Search, judge and write the chosen model of `name` with the reasons."""
    everything, model = settings.model(name)
    task = tasks.find(model.task)
    trainer = task.trainer()
    source, out = stage_files.stage(name, "export") / "model.onnx", stage_files.stage(name, "quantize")
    spec = ModelSpec.from_dict(stage_files.read_json(source.with_name("spec.json")))
    preprocess = task.preprocessor(spec, stage_files.stage(name, "train"))
    path = stage_files.manifest(name)
    calibration = preprocess(manifest.load_split(path, "train").inputs[: model.quantize.calibration_samples])
    val = manifest.load_split(path, "val")
    inputs = preprocess(val.inputs)

    with tempfile.TemporaryDirectory(dir=stage_files.SCRATCH) as folder:
        int8 = Path(folder) / "int8.onnx"
        candidate = best_candidate(source, int8, calibration, trainer, model.quantize)
        full, small = sessions.run(source, inputs), sessions.run(int8, inputs)
        change = bootstrap.paired(
            task.scorer(small, val, spec),
            task.scorer(full, val, spec),
            len(val.ids),
            metric=task.headline,
            resamples=model.evaluate.resamples,
            seed=everything.seed,
        )
        single = {key: value[:1] for key, value in inputs.items()}
        seconds = sessions.pairs(source, int8, single, rounds=ROUNDS)
        fast = speedup(seconds)
        sizes = {"fp32": source.stat().st_size, "int8": int8.stat().st_size}
        gap = quantization.distance(full, small)
        reasons = objections(change, gap, sizes, fast, task.headline, model.quantize)
        chosen = source if reasons else int8
        with replacing(out / "model.onnx") as partial:
            shutil.copyfile(chosen, partial)
    verdict: dict[str, Any] = {
        "chosen": "fp32" if reasons else "int8",
        "reasons": reasons or ["as accurate as FP32 within the allowance, smaller, and not clearly slower"],
        "candidate": asdict(candidate),
        task.headline: {
            "int8_minus_fp32": change.rounded(),
            "allowed_loss": model.quantize.max_loss,
            "samples": len(val.ids),
        },
        "mean_difference": {"value": float(f"{gap:.2g}"), "tolerance": model.quantize.tolerance},
        "bytes": sizes,
        "size_ratio": round(sizes["int8"] / sizes["fp32"], 3),
        "cpu_features": cpu_features(),
    }
    stage_files.write_json(out / "verdict.json", verdict)
    fp32, int8_seconds = map(float, np.median(seconds, axis=0))
    timing = {"fp32_ms": fp32 * 1e3, "int8_ms": int8_seconds * 1e3, "speedup": fast.value}
    stage_files.write_json(stage_files.scratch("timings", name) / "quantize.json", timing)
    print(f"{name}: {verdict['chosen']} ships; {'; '.join(verdict['reasons'])} ({fast.value:.2f}x)")


def best_candidate(
    source: Path, target: Path, calibration: Arrays, trainer: Any, options: settings.Quantize
) -> quantization.Candidate:
    """Write the grid's best INT8 model to `target`: the one closest to FP32 on the calibration samples."""
    import onnx

    exclude = trainer.nodes_to_exclude(onnx.load(source))
    full = sessions.run(source, calibration)
    candidates = []
    for number, candidate in enumerate(quantization.grid(trainer.QUANTIZATION, options.methods)):
        path = target.with_name(f"candidate-{number}.onnx")
        quantization.quantize(source, path, candidate, calibration, exclude=exclude)
        candidates.append((quantization.distance(full, sessions.run(path, calibration)), path, candidate))
    _, path, candidate = min(candidates, key=lambda row: row[0])
    path.replace(target)
    return candidate


def speedup(seconds: NDArray[np.float64]) -> bootstrap.Interval:
    """Return FP32's time over INT8's for pairs (rounds, 2): the median and its 99.9 % interval, by order statistics."""
    ratios = np.sort(seconds[:, 0] / seconds[:, 1])
    half = 3.29 * np.sqrt(len(ratios)) / 2
    low, high = int(len(ratios) / 2 - half), int(np.ceil(len(ratios) / 2 + half))
    return bootstrap.Interval(
        float(np.median(ratios)), float(ratios[max(low, 0)]), float(ratios[min(high, len(ratios) - 1)])
    )


def objections(
    change: bootstrap.Interval,
    gap: float,
    sizes: Mapping[str, int],
    fast: bootstrap.Interval,
    metric: str,
    options: settings.Quantize,
) -> list[str]:
    """Return the reasons why INT8 must not ship; empty if it may.

    sizes: bytes of `fp32` and `int8`. fast: FP32's time over INT8's. Speed decides only far below any ratio that a working INT8 was
    measured at: every ratio from CLEARLY_SLOWER up gives the same decision, so a second run decides alike.
    """
    reasons = ["precision: fp32 in params.yaml"] if options.precision == "fp32" else []
    if not change.low >= -options.max_loss:
        reasons.append(f"{metric} may fall by {-change.low:.4f} (lower bound), {options.max_loss} is allowed")
    if not gap <= options.tolerance:
        reasons.append(f"outputs differ by {gap:.4f} in the mean, {options.tolerance} is allowed")
    if not sizes["int8"] < sizes["fp32"]:
        reasons.append("not smaller than FP32")
    if not fast.high >= CLEARLY_SLOWER:
        reasons.append(f"clearly slower than FP32 on this processor: under {CLEARLY_SLOWER:.2f} times its speed")
    return reasons
