"""Compare Loopline's drift alarm with other methods, on the same windows and at the same rate of false alarms.

Run by `make bench SUITE=drift`. It needs the bundles of `make repro`; --project names further folders with bundles of other data
sets. It writes docs/drift-benchmark.md and a picture. `--quick` only shows that it works: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.drift import page, picture, protocol, rules, trial

QUICK = protocol.Size(references=1, nulls=4, sizes=(50, 100), streams=10)
MOST = 800  # held-out samples of a model


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__)
    parser.add_argument(
        "--project", nargs="+", type=Path, default=[Path()], help="folders that are laid out like this repository"
    )
    parser.add_argument("--model", nargs="+", help="measure only these models (default: every model with a bundle)")
    parser.add_argument("--quick", action="store_true", help="run a few windows, to show that it works")
    parser.add_argument("--results", type=Path, default=Path(".loopline/bench-drift.json"), help="file of all figures")
    parser.add_argument("--docs", type=Path, help="folder of the page (default: docs; none with --quick)")
    parser.add_argument("--go-on", action="store_true", help="keep what an interrupted run has finished")
    parser.add_argument("--report", action="store_true", help="only write the page, from the figures in --results")
    parser.add_argument("--rules", action="store_true", help="also measure what the rules cost Prometheus (3 minutes)")
    options = parser.parse_args()
    if not options.report:
        models = [
            (project, folder.parent.name)
            for project in options.project
            for folder in sorted((project / "models").glob("*/bundle"))
            if not options.model or folder.parent.name in options.model
        ]
        if not models:
            sys.exit("no bundles under models/: run `make repro` first")
        began = time.monotonic()
        size = QUICK if options.quick else protocol.Size()
        places = [f"{project}: {name}" for project, name in models]
        results = {"trials": [], "minutes": 0.0, "machine": page.machine(), "size": repr(size), "places": places}
        if options.go_on and options.results.exists():
            saved = json.loads(options.results.read_text(encoding="utf-8"))
            if any(saved.get(key) != results[key] for key in ("machine", "size", "places")):
                sys.exit(f"{options.results} is of another machine, size or choice of models: run without --go-on")
            results = saved
        before = results["minutes"]
        with ProcessPoolExecutor() as pool:
            jobs = {
                pool.submit(trial.run, project, name, size, MOST): place
                for (project, name), place in zip(models, places, strict=True)
                if place not in [row["place"] for row in results["trials"]]
            }
            for job in as_completed(jobs):
                done = job.result() | {"place": jobs[job]}
                results["trials"] = sorted([*results["trials"], done], key=lambda row: places.index(row["place"]))
                results["minutes"] = before + (time.monotonic() - began) / 60
                print(f"{done['model']} of {done['dataset']}: {results['minutes']:.1f} min", flush=True)
                _save(results, options.results)
    results = json.loads(options.results.read_text(encoding="utf-8"))
    if options.rules:
        results["rules"] = rules.measure(sorted(Path("models").glob("*/bundle")))
        _save(results, options.results)
    text = page.page(results)
    print(text)
    docs = options.docs or (None if options.quick else Path("docs"))
    if docs:
        (docs / "pictures").mkdir(parents=True, exist_ok=True)
        (docs / "drift-benchmark.md").write_text(text, encoding="utf-8")
        picture.picture(results, docs / "pictures/drift-benchmark.png")
    return 0


def _save(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(results), encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
