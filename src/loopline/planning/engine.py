"""`python -m loopline.planning.engine BUNDLE SECONDS`: runs the bare engine in its own process, and prints JSON.

growth: MiB of private memory that loading and running the model added. rate: rows a second at the model's best batch size.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import onnxruntime  # noqa: F401 - imported first, so that its own memory is not counted as the model's
import psutil

from loopline.server.model import Model


def main(folder: Path, seconds: float) -> dict[str, float]:
    """Load and warm up the model, run it for `seconds`, and return the figures above."""
    process = psutil.Process()
    before = process.memory_full_info().uss
    model = Model(folder)
    model.warm_up()
    growth = process.memory_full_info().uss - before
    arrays, runs, start = model.example(model.best_rows), 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        model.session.run(model.output_names, arrays)
        runs += 1
    rate = runs * model.best_rows / (time.perf_counter() - start)
    return {"growth": max(0, growth) / 2**20, "rate": rate}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), float(sys.argv[2]))))
