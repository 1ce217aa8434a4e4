"""Make the drift reference: how each signal of the model that ships is distributed on held-out data, and when a change counts.

Validation and test split are held out; on training rows a model has more confidence than on others. A third of the rows defines the
bins and the rest is counted in them: a reference counted on the rows that defined its bins would look more even than any traffic.

Writes to `models/<model>/calibrate/` the files `drift.json` (see `drift.reference`) and `golden.json`, a few samples with the
answers that a live server must still give. Run by `dvc repro calibrate@<model>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline import settings, tasks
from loopline.data import manifest
from loopline.drift import golden, harm, thresholds
from loopline.drift import reference as drift
from loopline.errors import LooplineError
from loopline.lib import sessions
from loopline.stages import stage_files
from loopline.tasks import signals
from loopline.tasks.spec import ModelSpec

HELD_OUT = ("val", "test")
GOLDEN = 4  # samples
FOR_BINS = 3  # every third row
LEAST_ROWS = 60


def main(name: str) -> None:
    """Make the reference of `name`. Raises LooplineError if there are too few held-out samples."""
    everything, model = settings.model(name)
    task = tasks.find(model.task)
    spec = ModelSpec.from_dict(stage_files.read_json(stage_files.stage(name, "export") / "spec.json"))
    preprocess = task.preprocessor(spec, stage_files.stage(name, "train"))
    parts, quality, targets = [], [], []
    for part in HELD_OUT:
        split = manifest.load_split(stage_files.manifest(name), part)
        inputs = preprocess(split.inputs)
        outputs = sessions.run(stage_files.stage(name, "quantize") / "model.onnx", inputs)
        parts.append(signals.signals(inputs, outputs, spec, split.inputs, split.sizes if spec.image else None))
        quality.append(task.quality(outputs, split, spec))
        targets.append(split.targets)
    if sum(map(len, quality)) < LEAST_ROWS:
        raise LooplineError(
            f"{name}: {sum(map(len, quality))} samples in {' and '.join(HELD_OUT)}, at least {LEAST_ROWS} are needed to detect drift: "
            f"raise val or test in models.{name}.split"
        )
    reference = make(
        {signal: np.concatenate([part[signal] for part in parts]) for signal in parts[0]},
        np.concatenate(quality),
        spec=spec,
        metric=task.quality_name,
        targets=np.concatenate(targets) if task.has_classes and task.truth == "label" else None,
        options=model.calibrate,
        seed=everything.seed,
    )
    stage_files.write_json(stage_files.stage(name, "calibrate") / "drift.json", reference.to_dict())
    # The golden samples are the first of the last part, the test split
    answers = task.answers({key: value[:GOLDEN] for key, value in outputs.items()}, spec, split.sizes[:GOLDEN])
    originals: Sequence[Any] = split.inputs[:GOLDEN]
    rows = [golden.GoldenSample(original, answer) for original, answer in zip(originals, answers, strict=True)]
    stage_files.write_json(stage_files.stage(name, "calibrate") / "golden.json", golden.to_dict(rows))


def make(
    by_name: signals.Signals,
    quality: NDArray[np.float64],
    *,
    spec: ModelSpec,
    metric: str,
    targets: NDArray[Any] | None,
    options: settings.Calibrate,
    seed: int,
) -> drift.Reference:
    """Return the reference from signals by name and quality of n held-out samples. targets: their classes, for a classifier."""
    for_bins = np.arange(len(quality)) % FOR_BINS == 0
    rest = ~for_bins
    confidence = tasks.find(spec.task).confidence
    threshold = float(f"{harm.atc_threshold(by_name[confidence][rest], quality[rest]):.6g}")
    edges = {name: drift.quantile_edges(values[for_bins], options.bins) for name, values in by_name.items()}
    if signals.CLASS in by_name:
        edges[signals.CLASS] = drift.class_edges(len(spec.labels))
    edges[confidence] = harm.confidence_edges(edges[confidence], threshold)
    bins = {name: drift.bin_of(values, edges[name]) for name, values in by_name.items()}
    widths = {name: len(rows) + 2 for name, rows in edges.items()}
    null = thresholds.calibrate(
        bins,
        widths,
        samples=int(rest.sum()),
        rate=options.false_alarms,
        windows=options.windows,
        streams=options.streams,
        seed=seed,
    )
    confusion = () if targets is None else _confusion(by_name[signals.CLASS][rest], targets[rest], len(spec.labels))
    return drift.Reference(
        samples=int(rest.sum()),
        least=options.least_samples,
        threshold=(round(null.threshold[0], 4), round(null.threshold[1], 4), round(null.threshold[2], 4)),
        promise={
            "false_alarms": options.false_alarms,
            "windows": options.windows,
            "evaluations": thresholds.EVALUATIONS,
        },
        signals={
            name: drift.Signal(
                edges=tuple(map(float, edges[name])),
                counts=tuple(map(int, np.bincount(bins[name][rest], minlength=widths[name]))),
                mean=round(null.mean[name], 5),
                sd=round(null.sd[name], 5),
            )
            for name in by_name
        },
        quality=drift.Quality(
            metric=metric,
            value=round(float(quality[rest].mean()), 4),
            max_loss=options.max_loss,
            signal=confidence,
            weights=harm.weights(by_name[confidence][rest], quality[rest], edges[confidence], threshold),
        ),
        labels=drift.ReferenceLabels(names=spec.labels, confusion=confusion),
    )


def _confusion(predicted: NDArray[np.float64], targets: NDArray[Any], classes: int) -> tuple[tuple[int, ...], ...]:
    """Return the counts of (predicted, true) classes: (classes, classes)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (predicted.astype(np.int64), targets), 1)
    return tuple(tuple(map(int, row)) for row in counts)
