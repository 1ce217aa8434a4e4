"""Measure what must be fast beside something to compare it with, in one run, in turn, as medians. Run by `make bench`.

Needs the models of `make repro`. The ratios are the result, because the times depend on the machine and on its other work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from loopline import settings, tasks
from loopline.data import manifest
from loopline.lib import sessions
from loopline.lib.machine import cpu_name
from loopline.server.drift_counter import MOST_PAUSE, PAUSE, ROWS_A_SECOND, Watcher
from loopline.server.metrics import Metrics
from loopline.server.model import Encoded, Model
from loopline.stages import stage_files
from loopline.stages.quantize import best_candidate
from loopline.tasks.signals import CLASS
from loopline.tasks.spec import ModelSpec

ROUNDS = 7
SIGNALS_SECONDS = 6


def models() -> None:
    """Print the times of FP32, INT8 and preprocessing, for one sample and for a batch of 32."""
    print(
        "| model | batch | preprocess ms | FP32 ms | INT8 ms | speed-up | size ratio |\n|---|---|---|---|---|---|---|"
    )
    for name, model in settings.load().models.items():
        source = stage_files.stage(name, "export") / "model.onnx"
        spec = ModelSpec.from_dict(stage_files.read_json(source.with_name("spec.json")))
        preprocess = tasks.find(model.task).preprocessor(spec, stage_files.stage(name, "train"))
        train = manifest.load_split(stage_files.manifest(name), "train").inputs[: model.quantize.calibration_samples]
        test = manifest.load_split(stage_files.manifest(name), "test").inputs
        with tempfile.TemporaryDirectory(dir=stage_files.SCRATCH) as folder:
            int8 = Path(folder) / "int8.onnx"
            best_candidate(source, int8, preprocess(train), tasks.find(model.task).trainer(), model.quantize)
            ratio = int8.stat().st_size / source.stat().st_size
            for batch in (1, 32):
                inputs = preprocess(test[:batch])
                spent = _median(lambda batch=batch, preprocess=preprocess, test=test: preprocess(test[:batch]))
                seconds = sessions.side_by_side(source, int8, inputs)
                times = f"{spent * 1e3:.3f} | {seconds['a'] * 1e3:.3f} | {seconds['b'] * 1e3:.3f}"
                print(f"| {name} | {batch} | {times} | {seconds['a'] / seconds['b']:.2f}x | {ratio:.2f} |")


def drift_signals() -> None:
    """Print the processor time of counting a sample's signals, at the rate of a server, and that of answering a sample.

    Samples are answered one by one, at that same rate (caches are cold) and at full speed. The ratio is to the latter.
    """
    print(
        "\n| model | signals ms | answer ms, now and then | answer ms, full speed | ratio | counted a second | of a core |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in settings.load().models:
        model, metrics = Model(stage_files.stage(name, "bundle")), Metrics()
        samples: list[Any] = list(manifest.load_split(stage_files.manifest(name), "test").inputs)
        watcher = Watcher([model], metrics)
        clock = time.pthread_getcpuclockid(watcher.thread.ident or 0)
        sent, cold, start = SIGNALS_SECONDS * ROWS_A_SECOND, 0.0, time.monotonic()
        for number in range(sent):
            time.sleep(max(0.0, start + number / ROWS_A_SECOND - time.monotonic()))
            before = time.thread_time()
            model.run([Encoded([samples[number % len(samples)]])])
            cold += time.thread_time() - before
        time.sleep(MOST_PAUSE + PAUSE)  # until the last samples are counted
        counting = time.clock_gettime(clock)
        counted = sum(value.value for key, value in metrics.series["signal_rows"].items() if key[2] == CLASS)
        watcher.close()
        model.watch = None
        before = time.thread_time()
        for number in range(sent):
            model.run([Encoded([samples[number % len(samples)]])])
        warm = time.thread_time() - before
        spent, apart, after = counting / counted * 1e3, cold / sent * 1e3, warm / sent * 1e3
        share = spent * ROWS_A_SECOND / 1e3
        row = f"{spent:.3f} | {apart:.3f} | {after:.3f} | {spent / after:.2f} | {ROWS_A_SECOND} | {share:.2%}"
        print(f"| {name} | {row} |")


def commands() -> None:
    """Print the times of the command line and of a bare Python, and of a pipeline with nothing to do and of a bare dvc."""
    print("\n| command | s | beside | s | ratio |\n|---|---|---|---|---|")
    python = sys.executable
    for measured, bare in (
        (["loopline", "--help"], [python, "-c", "pass"]),
        (["dvc", "repro"], ["dvc", "version"]),
    ):
        spent: dict[int, list[float]] = {0: [], 1: []}
        for _ in range(ROUNDS):
            for side, command in enumerate((measured, bare)):
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                spent[side].append(time.perf_counter() - start)
        a, b = median(spent[0]), median(spent[1])
        print(
            f"| {' '.join(measured)} | {a:.2f} | {' '.join(bare).replace(python, 'python')} | {b:.2f} | {a / b:.1f} |"
        )


# A small network, as the pipeline trains them: many short parallel regions, with a wait after each.
STEPS = """
import time, torch
network = torch.nn.Sequential(*[torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(8)])
images = torch.zeros(8, 16, 28, 28)
network(images).sum().backward()
start = time.perf_counter()
for _ in range(100):
    network(images).sum().backward()
print(time.perf_counter() - start)
"""
THREADS = {
    "one": {"OMP_NUM_THREADS": "1"},  # as in the pipeline
    "two that sleep": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    "two that spin": {"OMP_NUM_THREADS": "2"},  # OpenMP's default
}


def threads() -> None:
    """Print the times of training steps by OpenMP's threads, which sleep or spin while they wait: alone, and beside busy loops."""
    print(f"\n| beside | {' s | '.join(THREADS)} s |\n|---|---|---|---|")
    plain = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for count in range((os.cpu_count() or 1) + 1):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
        spent: dict[str, list[float]] = {name: [] for name in THREADS}
        try:
            for _ in range(ROUNDS):
                for name, environment in THREADS.items():
                    done = subprocess.run(
                        [sys.executable, "-c", STEPS], check=True, capture_output=True, env=plain | environment
                    )
                    spent[name].append(float(done.stdout))
        finally:
            for process in busy:
                process.kill()
                process.wait()
        print(f"| {count} busy loops | {' | '.join(f'{median(times):.2f}' for times in spent.values())} |", flush=True)


def _median(call: Callable[[], object]) -> float:
    spent = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return median(spent)


if __name__ == "__main__":
    print(f"{cpu_name()}\n")
    models()
    drift_signals()
    threads()
    commands()
