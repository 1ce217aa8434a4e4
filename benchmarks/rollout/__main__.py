"""Measure how often the judge is right, by the number of requests that a step demands. Run by `make bench SUITE=rollout`.

The rollouts are simulated, and the judge itself decides them. Writes docs/rollout-benchmark.md and a picture. `--quick` only shows
that it works: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.rollout import page, simulation


def main() -> int:
    """Run the benchmark and return the exit code: 1 if a target is missed at the shipped policy."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollout", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="simulate a few rollouts, to show that it works")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the first rollout; the judge was developed with the seeds from 0 on",
    )
    parser.add_argument(
        "--results", type=Path, default=Path(".loopline/bench-rollout.json"), help="file of all figures"
    )
    parser.add_argument("--docs", type=Path, help="folder of the page (default: docs; none with --quick)")
    parser.add_argument("--report", action="store_true", help="only write the page, from the figures in --results")
    options = parser.parse_args()
    if not options.report:
        began, sizes = time.monotonic(), page.QUICK if options.quick else page.SIZES
        with ProcessPoolExecutor() as pool:
            jobs = [
                (fault.name, size, pool.submit(simulation.rate, fault, page.policy(fault, size), runs, options.seed))
                for fault in page.FAULTS
                for size in sizes
                for runs in [20 if options.quick else page.runs(fault)]
            ]
            rows = [{"fault": name, "size": size, **job.result()} for name, size, job in jobs]
        results = {"rows": rows, "minutes": (time.monotonic() - began) / 60}
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(results), encoding="utf-8")
    results = json.loads(options.results.read_text(encoding="utf-8"))
    text = page.page(results)
    print(text)
    docs = options.docs or (None if options.quick else Path("docs"))
    if docs:
        (docs / "rollout-benchmark.md").write_text(text, encoding="utf-8")
        page.picture(results, docs / "pictures/rollout-benchmark.png")
    missed = page.missed(results)
    print("\n".join(missed), file=sys.stderr)
    return 1 if missed and not options.quick else 0


if __name__ == "__main__":
    sys.exit(main())
