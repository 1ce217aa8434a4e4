"""`make bench SUITE=drift`: Loopline's drift alarm beside other methods, on the same windows, at the same rate of false alarms.

Needs the bundles of `make repro`; --project names further folders with bundles of other data sets. Writes
docs/drift-benchmark.md and a picture. `--quick` only shows that it works: its figures mean nothing.
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
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__)
    parser.add_argument("--project", nargs="+", type=Path, default=[Path()], help="folders like this repository")
    parser.add_argument("--model", nargs="+", help="these only (default: every one with a bundle)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, default=Path(".loopline/bench-drift.json"), help="all figures")
    parser.add_argument("--docs", type=Path, help="where to write (default: docs; nowhere if quick)")
    parser.add_argument("--go-on", action="store_true", help="keep the sets that a run which was cut off has finished")
    parser.add_argument("--report", action="store_true", help="only write the page anew from the figures")
    parser.add_argument("--rules", action="store_true", help="what the rules cost Prometheus, too: 3 minutes")
    options = parser.parse_args()
    if not options.report:
        todo = [
            (project, folder.parent.name)
            for project in options.project
            for folder in sorted((project / "models").glob("*/bundle"))
            if not options.model or folder.parent.name in options.model
        ]
        if not todo:
            sys.exit("no bundles under models/: run `make repro` first")
        began = time.monotonic()
        size = QUICK if options.quick else protocol.Size()
        places = [f"{project}: {name}" for project, name in todo]
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
                for (project, name), place in zip(todo, places, strict=True)
                if place not in [known["place"] for known in results["trials"]]
            }
            for job in as_completed(jobs):
                done = job.result() | {"place": jobs[job]}
                results["trials"] = sorted([*results["trials"], done], key=lambda one: places.index(one["place"]))
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
