"""How many points does a pretrained network gain where labels are few, and what does INT8 cost it?

Draws 20 training and 20 validation images a class, five times, from each data set. Each draw trains the classifier from scratch, and a
probe on EfficientNet-Lite0 whose INT8 version is compared with it. All answer the same test images. Needs `make pretrained`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline import settings, tasks
from loopline.data.manifest import Split
from loopline.data.raw import RawSample
from loopline.data.sources import open_dataset
from loopline.lib import sessions
from loopline.lib.machine import cpu_features, cpu_name
from loopline.stages.quantize import best_candidate
from loopline.tasks.classification.parameters import ClassificationSettings

A_CLASS = 20
DRAWS = 5
T_95 = 2.776  # Student's t for five draws
SCRATCH = {"epochs": 40, "patience": 40, "batch_size": 32}
MIRRORED = ("fashion-mnist",)  # letters do not stay the same
PROBE = {"architecture": "efficientnet-lite0", "pretrained": "imagenet", "probe": True}


def split(samples: list[RawSample], labels: tuple[str, ...]) -> Split:
    """These samples, as the trainer takes them."""
    index = {label: number for number, label in enumerate(labels)}
    inputs = [sample.image or b"" for sample in samples]
    targets = np.array([index[sample.label or ""] for sample in samples], np.int64)
    sizes = np.zeros((len(inputs), 2), np.int32)
    return Split([hashlib.sha256(data).hexdigest() for data in inputs], inputs, targets, sizes, labels)


def drawn(dataset: str, seed: int, tested: int) -> dict[str, Split]:
    """The splits of one draw: `train` and `val` with A_CLASS images a class, `test` with `tested` images."""
    samples = [sample for sample in open_dataset(dataset, "classification") if sample.image and sample.label]
    labels = tuple(sorted({sample.label or "" for sample in samples}))
    parts: dict[str, list[RawSample]] = {"train": [], "val": [], "test": []}
    taken = dict.fromkeys(labels, 0)
    for place in np.random.default_rng(seed).permutation(len(samples)):
        sample = samples[place]
        number = taken[sample.label or ""]
        part = "train" if number < A_CLASS else "val" if number < 2 * A_CLASS else "test"
        if part != "test" or len(parts["test"]) < tested:
            parts[part].append(sample)
            taken[sample.label or ""] += 1
    return {name: split(chosen, labels) for name, chosen in parts.items()}


def model(side: int, train: dict[str, Any]) -> ClassificationSettings:
    """The classifier's settings with another input and training."""
    _, configured = settings.model("classifier")
    changed = configured.model_dump() | {"input": {"height": side, "width": side, "channels": 3}}
    changed["train"] |= {"rotate": 0} | train
    return ClassificationSettings.model_validate(changed)


def hits(outputs: NDArray[np.float32], split: Split) -> NDArray[np.float64]:
    """1 for each right answer, else 0."""
    return (outputs.argmax(1) == split.targets).astype(np.float64)


def one(splits: dict[str, Split], configured: ClassificationSettings, folder: Path, *, int8: bool) -> dict[str, Any]:
    """Train on one draw; return the hits on the test split, of INT8 too if asked, and FP32's time over INT8's."""
    task = tasks.find("classification")
    trainer, out = task.trainer(), folder / "train"
    train, val, test = splits["train"], splits["val"], splits["test"]
    with contextlib.redirect_stdout(sys.stderr):  # progress
        trainer.train(train, val, configured, seed=0, out=out, work=folder / "work", log=lambda *_: None)
    source = folder / "model.onnx"
    spec = trainer.export(out, train, val, configured, out=source)
    preprocess = task.preprocessor(spec, out)
    inputs = preprocess(test.inputs)
    result = {"fp32": hits(sessions.run(source, inputs)["probabilities"], test)}
    if int8:
        target = folder / "int8.onnx"
        best_candidate(source, target, preprocess(train.inputs), trainer, configured.quantize)
        result["int8"] = hits(sessions.run(target, inputs)["probabilities"], test)
        seconds = sessions.side_by_side(source, target, preprocess(test.inputs[:1]))
        result["speedup"] = seconds["a"] / seconds["b"]
    return result


def interval(values: list[float]) -> str:
    """The mean of one figure a draw and its 95 % interval, by Student's t."""
    mean, half = float(np.mean(values)), T_95 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def main() -> None:
    """Print a row of Markdown for each data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=112, help="side of the pretrained network's images, in pixels")
    parser.add_argument("--tested", type=int, default=1000, help="test images of a draw")
    parser.add_argument("--datasets", nargs="+", default=["fashion-mnist", "notmnist"])
    options = parser.parse_args()
    print(f"{cpu_name()}: {', '.join(cpu_features())}; {DRAWS} draws, {options.tested} test images each\n")
    print("| data | from scratch | probe | gain | INT8 - FP32 | INT8, times FP32's speed |\n|---|---|---|---|---|---|")
    for dataset in options.datasets:
        rows = []
        for seed in range(DRAWS):
            splits = drawn(dataset, seed, options.tested)
            with tempfile.TemporaryDirectory() as folder:
                scratch = one(
                    splits, model(28, SCRATCH | {"flip": dataset in MIRRORED}), Path(folder) / "scratch", int8=False
                )
                rows.append((scratch, one(splits, model(options.side, PROBE), Path(folder) / "probe", int8=True)))
        gains = [float((probe["fp32"] - scratch["fp32"]).mean()) for scratch, probe in rows]
        losses = [float((probe["int8"] - probe["fp32"]).mean()) for _, probe in rows]
        scratch_mean, probe_mean = (float(np.mean([row[k]["fp32"].mean() for row in rows])) for k in (0, 1))
        speed = float(np.median([probe["speedup"] for _, probe in rows]))
        print(
            f"| {dataset} | {scratch_mean:.3f} | {probe_mean:.3f} | {interval(gains)} | {interval(losses)} | {speed:.1f}x |"
        )


if __name__ == "__main__":
    main()
