"""What does a fine-tuned encoder gain over n-grams, what does INT8 cost it, and what does it teach a smaller encoder?

On each split of rt-polarity: n-grams; MiniLM-L6, fine-tuned, in FP32 and INT8; and a student with some of its layers, trained with the
fine-tuned one as its teacher and without. All answer the same test texts. Needs `make pretrained`. A split took half an hour beside
other work.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from loopline import settings, tasks
from loopline.data.clean import clean
from loopline.data.manifest import Split
from loopline.data.sources import open_dataset
from loopline.lib import sessions
from loopline.lib.arrays import Arrays
from loopline.lib.machine import cpu_features, cpu_name
from loopline.settings import SplitSettings
from loopline.stages.quantize import best_candidate
from loopline.tasks import bootstrap
from loopline.tasks.text.parameters import TextSettings
from loopline.training.distillation import Taught

DATASET = "rt-polarity"
TEACHER = {"architecture": "minilm-l6", "epochs": 2, "batch_size": 32, "learning_rate": 5e-5}
BATCHES = (1, 16)


def splits(seed: int) -> dict[str, Split]:
    """The splits of rt-polarity with this seed, as `ingest` makes them."""
    _, configured = settings.model("text")
    split = SplitSettings(**(configured.split.model_dump() | {"seed": seed}))
    cleaned = clean([(DATASET, open_dataset(DATASET, "text"))], task="text", split=split)
    labels = tuple(sorted({sample.label or "" for sample in cleaned.samples}))
    parts = {}
    for name in ("train", "val", "test"):
        samples = sorted((sample for sample in cleaned.samples if sample.split == name), key=lambda sample: sample.id)
        targets = np.array([labels.index(sample.label or "") for sample in samples], np.int64)
        texts = [sample.text or "" for sample in samples]
        parts[name] = Split(
            [sample.id for sample in samples], texts, targets, np.zeros((len(texts), 2), np.int32), labels
        )
    return parts


def model(train: dict[str, Any], max_tokens: int = 64) -> TextSettings:
    """The text model's settings with another training."""
    _, configured = settings.model("text")
    changed = configured.model_dump() | {"input": {"max_tokens": max_tokens}}
    changed["train"] |= train
    return TextSettings.model_validate(changed)


@dataclass(frozen=True)
class Trained:
    """A trained model. hits: of the test split, 1 for each right answer. minutes: of its training."""

    graph: Path
    hits: NDArray[np.float64]
    inputs: dict[str, Arrays]
    minutes: float


def hits(graph: Path, inputs: Arrays, split: Split) -> NDArray[np.float64]:
    """1 for each right answer, else 0."""
    return (sessions.run(graph, inputs)["probabilities"].argmax(1) == split.targets).astype(np.float64)


def one(
    parts: dict[str, Split], configured: TextSettings, folder: Path, seed: int, taught: Taught | None = None
) -> Trained:
    """Train and export a model."""
    task = tasks.find("text")
    trainer, out, start = task.trainer(), folder / "train", time.monotonic()
    train, val = parts["train"], parts["val"]
    more = {"taught": taught} if taught else {}
    with contextlib.redirect_stdout(sys.stderr):  # progress
        trainer.train(train, val, configured, seed=seed, out=out, work=folder, log=lambda *_: None, **more)
    minutes = (time.monotonic() - start) / 60
    spec = trainer.export(out, train, val, configured, out=folder / "model.onnx")
    preprocess = task.preprocessor(spec, out)
    inputs = {name: preprocess(split.inputs) for name, split in parts.items()}
    return Trained(folder / "model.onnx", hits(folder / "model.onnx", inputs["test"], parts["test"]), inputs, minutes)


def faster(slow: Path, fast: Path, inputs: Arrays) -> str:
    """How many times as fast the second graph is, for a text of 25 tokens alone and in a batch of 16."""
    ids = next(iter(inputs.values()))
    ratios = []
    for batch in BATCHES:
        seconds = sessions.side_by_side(slow, fast, {"ids": np.ascontiguousarray(ids[:batch, :25])})
        ratios.append(seconds["a"] / seconds["b"])
    return " / ".join(f"{ratio:.2f}x" for ratio in ratios)


def paired(better: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, str]:
    """The difference of two means, and with its 95 % bootstrap interval."""

    def scorer(values: NDArray[np.float64]) -> bootstrap.Scorer:
        return lambda weights: {"accuracy": float(np.average(values, weights=weights))}

    gain = bootstrap.paired(scorer(better), scorer(other), len(better), metric="accuracy", resamples=2000, seed=0)
    return gain.value, f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def rows(seed: int, student: dict[str, Any], teacher: dict[str, float]) -> Iterator[tuple[str, float, str]]:
    """Measure one split: yield what, the figure, and how it reads. student: its training; empty: none."""
    parts = splits(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ngrams = one(parts, model({}), folder / "ngrams", seed)
        encoder = one(parts, model(TEACHER), folder / "encoder", seed)
        int8 = folder / "int8.onnx"
        calibration = {key: array[:256] for key, array in encoder.inputs["train"].items()}
        best_candidate(encoder.graph, int8, calibration, tasks.find("text").trainer(), model(TEACHER).quantize)
        int8_hits = hits(int8, encoder.inputs["test"], parts["test"])
        yield "n-grams", ngrams.hits.mean(), f"{ngrams.hits.mean():.3f}"
        yield "encoder", encoder.hits.mean(), f"{encoder.hits.mean():.3f} ({encoder.minutes:.1f} min)"
        yield "encoder − n-grams", *paired(encoder.hits, ngrams.hits)
        yield "INT8 − FP32", *paired(int8_hits, encoder.hits)
        yield "INT8, MB", int8.stat().st_size / 1e6, f"{int8.stat().st_size / 1e6:.1f}"
        yield "INT8, times FP32's speed", np.nan, faster(encoder.graph, int8, encoder.inputs["test"])
        if not student:
            return
        answers = sessions.run(encoder.graph, encoder.inputs["train"])["probabilities"].astype(np.float32)
        taught = one(parts, model(student), folder / "taught", seed, Taught(answers, **teacher))
        alone = one(parts, model(student), folder / "alone", seed)
        yield "student", taught.hits.mean(), f"{taught.hits.mean():.3f} ({taught.minutes:.1f} min)"
        yield "student − encoder", *paired(taught.hits, encoder.hits)
        yield "student − the same without a teacher", *paired(taught.hits, alone.hits)
        yield "student, times the encoder's speed", np.nan, faster(encoder.graph, taught.graph, encoder.inputs["test"])


def over_splits(values: list[float]) -> str:
    """The mean of one figure a split, and its 95 % interval by Student's t."""
    mean = float(np.mean(values))
    if len(values) < 2 or np.isnan(mean):
        return "" if np.isnan(mean) else f"{mean:.3f}"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def main() -> None:
    """Print a table in Markdown with a column for each split, and the mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="seeds of the splits")
    parser.add_argument("--layers", type=int, default=3, help="layers of the student; 0: no student")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of the student")
    parser.add_argument("--temperature", type=float, default=2.0, help="by which the teacher's logits are divided")
    parser.add_argument("--weight", type=float, default=0.8, help="of the teacher's answers in the loss")
    options = parser.parse_args()
    student = TEACHER | {"layers": options.layers, "epochs": options.epochs} if options.layers else {}
    teacher = {"temperature": options.temperature, "weight": options.weight}
    measured = []
    for seed in options.splits:
        measured.append(list(rows(seed, student, teacher)))
        for what, _, text in measured[-1]:
            print(f"split {seed}: {what}: {text}", file=sys.stderr, flush=True)
    print(f"{cpu_name()}: {', '.join(cpu_features())}; {DATASET}\n")
    print(f"| split | {' | '.join(map(str, options.splits))} | mean |\n|---|{'---|' * (len(measured) + 1)}")
    for line in zip(*measured, strict=True):
        print(
            f"| {line[0][0]} | {' | '.join(text for _, _, text in line)} | {over_splits([value for _, value, _ in line])} |"
        )


if __name__ == "__main__":
    main()
