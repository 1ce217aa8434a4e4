"""The engine without a server: `python bare.py BUNDLE OUTPUT,... SAMPLE.npy SECONDS` times one sample and the best batch."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from loopline.lib import sessions

ROWS = (2, 4, 8, 16, 32, 64)


def main(folder: str, outputs: str, sample: str, seconds: str) -> None:
    """Print samples a second with one sample and with the best batch, and the milliseconds of a run with one sample."""
    session = sessions.session(Path(folder) / "model.onnx")
    name, names, array = session.get_inputs()[0].name, outputs.split(","), np.load(sample)

    def timed(rows: int, limit: float) -> list[float]:
        batch, spent = {name: np.repeat(array, rows, axis=0)}, []
        session.run(names, batch)
        until = time.perf_counter() + limit
        while (start := time.perf_counter()) < until:
            session.run(names, batch)
            spent.append(time.perf_counter() - start)
        return spent

    rates = {rows: rows / float(np.median(timed(rows, float(seconds) / 5))) for rows in ROWS}
    best = max(rates, key=rates.__getitem__)
    single = timed(1, float(seconds))
    batched = timed(best, float(seconds))
    print(
        json.dumps(
            {
                "single": len(single) / sum(single),
                "p50": float(np.percentile(single, 50)) * 1e3,
                "p99": float(np.percentile(single, 99)) * 1e3,
                "best": best * len(batched) / sum(batched),
                "rows": best,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
