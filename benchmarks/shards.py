"""What do virtual shards cost, and what do two processes gain? Trains each shipped model for some epochs, in rounds, in turn.

Needs the manifests of `make repro` and two idle cores. Each training is a process of its own, because trainings with workers fork.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from loopline import settings, tasks
from loopline.data import manifest
from loopline.lib.machine import cpu_features, cpu_name
from loopline.stages import stage_files

EPOCHS = {"classifier": 4, "detector": 2, "text": 3}
ROUNDS = 3
VARIANTS = {"without shards": (1, 1), "4 shards, 1 process": (4, 1), "4 shards, 2 processes": (4, 2)}


def train(name: str, shards: int, workers: int) -> None:
    """Train once, and print the seconds from the first line of the log to the last: of all epochs but the first."""
    everything, model = settings.model(name)
    train, val = (manifest.load_split(stage_files.manifest(name), split) for split in ("train", "val"))
    change = {"epochs": EPOCHS[name] + 1, "patience": 99, "shards": shards, "workers": workers}
    model = model.model_copy(update={"train": model.train.model_copy(update=change)})
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        tasks.find(model.task).trainer().train(
            train,
            val,
            model,
            seed=everything.seed,
            out=out / "train",
            work=out / name,
            log=lambda *_: ends.append(time.perf_counter()),
        )
    print(json.dumps(ends[-1] - ends[0]))


def main() -> None:
    """Print a table in Markdown with a row for each model."""
    if len(sys.argv) > 1:
        train(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
        return
    print(
        f"{cpu_name()}: {', '.join(cpu_features())}; seconds of training and validation, medians of {ROUNDS} rounds\n"
    )
    print(f"| model | epochs | {' | '.join(VARIANTS)} | shards cost | two processes take |\n|{'---|' * 7}")
    for name, epochs in EPOCHS.items():
        seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for _ in range(ROUNDS):
            for variant, (shards, workers) in VARIANTS.items():
                words = [sys.executable, "-m", "benchmarks.shards", name, str(shards), str(workers)]
                done = subprocess.run(words, check=True, capture_output=True, text=True)
                seconds[variant].append(json.loads(done.stdout.splitlines()[-1]))
        alone, one, two = (median(values) for values in seconds.values())
        print(
            f"| {name} | {epochs} | {alone:.1f} | {one:.1f} | {two:.1f} | {one / alone:.2f}x | {two / one:.2f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
