"""The bare engine: `python bare.py BUNDLE OUTPUT,... SAMPLE.npy SECONDS` runs one sample in a loop, then the best batch."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from loopline.lib import sessions

ROWS = (2, 4, 8, 16, 32, 64)


def main(folder: str, outputs: str, sample: str, seconds: str) -> None:
    """Print samples a second, and milliseconds of a run with one sample."""
    session = sessions.session(Path(folder) / "model.onnx")
    name, wanted, array = session.get_inputs()[0].name, outputs.split(","), np.load(sample)

    def timed(rows: int, limit: float) -> list[float]:
        batch, spent = {name: np.repeat(array, rows, axis=0)}, []
        session.run(wanted, batch)
        until = time.perf_counter() + limit
        while (start := time.perf_counter()) < until:
            session.run(wanted, batch)
            spent.append(time.perf_counter() - start)
        return spent

    rates = {rows: rows / float(np.median(timed(rows, float(seconds) / 5))) for rows in ROWS}
    best = max(rates, key=rates.__getitem__)
    alone = timed(1, float(seconds))
    together = timed(best, float(seconds))
    print(
        json.dumps(
            {
                "one": len(alone) / sum(alone),
                "p50": float(np.percentile(alone, 50)) * 1e3,
                "p99": float(np.percentile(alone, 99)) * 1e3,
                "best": best * len(together) / sum(together),
                "rows": best,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
