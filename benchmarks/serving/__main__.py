"""`make bench SUITE=serving`: compare Loopline's server with other servers, in one run, in interleaved rounds, by medians.

The server has the first core to itself and the load generator the last. Needs the bundles of `make repro` and wrk. Writes
docs/benchmarks.md, docs/benchmarks/ and docs/pictures/benchmarks.png. `--quick` only shows that everything works: its figures
mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.serving import asks, load, machines, picture, report, servers
from benchmarks.serving.asks import Sample
from benchmarks.serving.figures import FLOODS, SHARES
from benchmarks.serving.servers import KINDS, Kind, Server

FILE_CONNECTIONS = 16
OPEN_CONNECTIONS, FLOOD_CONNECTIONS = 64, 2048
FLOOD_PATIENCE = 0.01  # seconds until a request in a flood is dropped for lack of a free connection
FLOOD_TIMEOUT_MS = (
    200  # what Loopline is told: of the 250 ms that an answer is of use, some go into sending and reading
)
FLOOD_BASE = 0.5  # share of the peak that is sent before and after a flood


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured. seconds: of a closed loop; idle, open, flood, after: seconds of each."""

    rounds: int = 3
    seconds: int = 2
    connections: tuple[int, ...] = (1, 16, 64)
    idle: float = 5.0
    open: float = 4.0
    flood: float = 20.0
    after: float = 3.0
    warm: bool = True
    complete: bool = True  # else without the server that starts slowest, and without starts with one bundle


QUICK = Size(rounds=1, seconds=1, connections=(1, 16), idle=0.5, open=1.0, flood=1.0, after=1.0, complete=False)
Results = dict[str, Any]


class Bench:
    """One run. measured: key -> rows, one from each round. absent: server -> why it is not in every table."""

    def __init__(self, folders: Sequence[Path], size: Size, scratch: Path) -> None:
        """folders: the bundles."""
        self.folders, self.size, self.scratch = folders, size, scratch
        self.samples = asks.samples(folders)
        self.timed = [sample for sample in self.samples if sample.task in ("classification", "detection")]
        self.measured: dict[str, list[Any]] = defaultdict(list)
        self.absent: dict[str, str] = {}

    def run(self, kinds: Sequence[Kind]) -> Results:
        """Measure everything. A server that cannot start or answers wrongly is noted in `absent` with the reason."""
        began = time.monotonic()
        loopline = next((kind for kind in kinds if not kind.package), None)
        for number in range(self.size.rounds):
            self.engines()
            for kind in kinds:
                self._try(kind, began, f"round {number + 1}", partial(self.round, number=number))
            if loopline:
                step = f"round {number + 1}, drift signals"
                self._try(loopline, began, step, partial(self.signals, number=number))
        running = [kind for kind in kinds if kind.name not in self.absent]
        peers = [kind for kind in running if kind.package and not kind.models]
        fastest = max(peers, key=lambda kind: self.peak(kind, self.timed[0]), default=None)
        bases = {"peer": fastest, "own": loopline if loopline in running else None}
        rates = self.rates({label: kind for label, kind in bases.items() if kind})
        for kind in filter(None, (loopline, fastest)):
            self._try(kind, began, "open loops and floods", partial(self.open_loops, rates=rates))
        return {
            "measured": self.measured,
            "absent": self.absent,
            "size": asdict(self.size),
            "minutes": (time.monotonic() - began) / 60,
        }

    def _try(self, kind: Kind, began: float, step: str, measure: Callable[[Kind], None]) -> None:
        """Take a step unless the server is absent. began: of the run, for the progress line."""
        if kind.name in self.absent:
            return
        print(f"{time.monotonic() - began:5.0f} s  {step}: {kind.name}", file=sys.stderr, flush=True)
        try:
            measure(kind)
        except (servers.Failed, RuntimeError, OSError) as error:
            self.absent[kind.name] = str(error)
            print(f"{kind.name}: {error}", file=sys.stderr)

    def engines(self) -> None:
        """Measure the engine without a server."""
        for sample in self.timed:
            folder = self.folders[self.samples.index(sample)]
            np.save(self.scratch / "sample.npy", sample.array)
            row = load.engine(folder, list(sample.expected), self.scratch / "sample.npy", self.size.seconds / 2)
            self.measured[f"engine/{sample.model}"].append(row)

    def round(self, kind: Kind, number: int) -> None:
        """Start a server with all its bundles, and measure its start, its closed loops and, in round 0, its memory and idling."""
        folders, samples = self._served(kind)
        with servers.running(kind, folders, samples, self.scratch) as server:
            self.measured[f"{kind.name}/start/{len(folders)}"].append(server.start_seconds)
            if number == 0:
                self.measured[f"{kind.name}/memory/{len(folders)}"].append(server.memory())
                self.measured[f"{kind.name}/idle"].append(self._idle(server))
            for sample in samples:
                if sample in self.timed:
                    self._closed(kind, server, sample)
        if self.size.complete and len(folders) > 1:
            place = next(place for place, sample in enumerate(samples) if sample.task == "classification")
            with servers.running(kind, [folders[place]], [samples[place]], self.scratch) as server:
                self.measured[f"{kind.name}/start/1"].append(server.start_seconds)
                self.measured[f"{kind.name}/memory/1"].append(server.memory())

    def _served(self, kind: Kind) -> tuple[list[Path], list[Sample]]:
        pairs = [
            (folder, sample)
            for folder, sample in zip(self.folders, self.samples, strict=True)
            if not kind.models or sample.model in kind.models
        ]
        return [folder for folder, _ in pairs], [sample for _, sample in pairs]

    def _idle(self, server: Server) -> float:
        """Percent of a core."""
        time.sleep(1)
        before = server.cpu_seconds()
        time.sleep(self.size.idle)
        return (server.cpu_seconds() - before) / self.size.idle * 100

    def _closed(self, kind: Kind, server: Server, sample: Sample) -> None:
        ask = kind.ask(sample)
        self._warm(server, ask)
        for connections in self.size.connections:
            self._wrk(f"{kind.name}/{sample.model}/{connections}", server, ask, connections)
        if kind.file and sample.task == "classification":
            ask = kind.file(sample)
            answer = replace(sample, expected={"probabilities": sample.expected["probabilities"]})
            if wrong := asks.check(server.port, ask, answer):
                raise servers.Failed(f"the image file's route: {wrong}")
            self._wrk(f"{kind.name}/file", server, ask, FILE_CONNECTIONS)

    def _wrk(self, key: str, server: Server, ask: asks.Ask, connections: int) -> None:
        sized = {"connections": connections, "seconds": self.size.seconds}
        self.measured[key].append(load.closed(server.port, ask, **sized, scratch=self.scratch))

    def _warm(self, server: Server, ask: asks.Ask) -> None:
        if self.size.warm:
            load.closed(server.port, ask, connections=16, seconds=1, scratch=self.scratch)

    def signals(self, kind: Kind, number: int) -> None:
        """Measure Loopline with and without drift signals at one connection. Which comes first alternates with the rounds."""
        variants = {"on": kind, "off": replace(kind, command=(*kind.command, "--signals", "0"))}
        for state in sorted(variants, reverse=number % 2 == 0):
            with servers.running(variants[state], self.folders, self.samples, self.scratch) as server:
                for sample in self.timed:
                    ask = kind.ask(sample)
                    self._warm(server, ask)
                    self._wrk(f"signals/{state}/{sample.model}", server, ask, 1)

    def peak(self, kind: Kind, sample: Sample) -> float:
        """The highest of the medians of a server's closed loops, in answers a second."""
        keys = [f"{kind.name}/{sample.model}/{connections}" for connections in self.size.connections]
        return float(max(median(row["rate"] for row in self.measured[key]) for key in keys))

    def rates(self, bases: dict[str, Kind]) -> dict[str, dict[str, float]]:
        """Model -> {"peer/0.5": requests a second, ...}: the open loops, which are the same for every server.

        bases: label -> the server whose peak the rates are shares of.
        """
        return {
            sample.model: {
                f"{label}/{share}": share * self.peak(kind, sample) for label, kind in bases.items() for share in SHARES
            }
            for sample in self.timed
        }

    def open_loops(self, kind: Kind, rates: dict[str, dict[str, float]]) -> None:
        """Send at each rate, then flood the server with multiples of its own peak. rates: of `rates`."""
        folders, samples = self._served(kind)
        with servers.running(kind, folders, samples, self.scratch) as server:
            for sample in self.timed:
                ask = kind.ask(sample)
                self._warm(server, ask)
                for name, rate in rates[sample.model].items():
                    phases = [(rate, 0.5), (rate, self.size.open)]
                    _, row = load.scheduled(
                        server.port, ask, phases, connections=OPEN_CONNECTIONS, scratch=self.scratch
                    )
                    self.measured[f"{kind.name}/{sample.model}/open/{name}"].append(row | {"rate": rate})
                for times in FLOODS:
                    row = self._flood(server, ask, self.peak(kind, sample), times)
                    self.measured[f"{kind.name}/{sample.model}/flood/{times}"].append(row)

    def _flood(self, server: Server, ask: asks.Ask, peak: float, times: int) -> Results:
        hurried = replace(ask, headers=ask.headers | {"X-Request-Timeout-Ms": str(FLOOD_TIMEOUT_MS)})
        base = FLOOD_BASE * peak
        phases = [(base, 0.5), (times * peak, self.size.flood), (base, self.size.after)]
        before, flood, after = load.scheduled(
            server.port,
            hurried,
            phases,
            connections=FLOOD_CONNECTIONS,
            scratch=self.scratch,
            patience=FLOOD_PATIENCE,
        )
        return {"peak": peak, "before": before, "flood": flood, "after": after}


def main() -> int:
    """Returns the exit code: 1 where Loopline itself failed."""
    names = [kind.name for kind in KINDS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument(
        "--bundles",
        nargs="+",
        type=Path,
        default=sorted(Path("models").glob("*/bundle")),
        help="bundles to serve (default: models/*/bundle)",
    )
    parser.add_argument("--quick", action="store_true", help="measure for 2 minutes, to see that everything works")
    parser.add_argument("--only", nargs="+", default=names, help="servers to measure (default: all)")
    parser.add_argument(
        "--docs", type=Path, help="folder for benchmarks.md, benchmarks/, pictures/ (default: docs; none with --quick)"
    )
    parser.add_argument(
        "--results", type=Path, default=Path(".loopline/bench-serving.json"), help="file for all figures"
    )
    options = parser.parse_args()
    if missing := load.missing_wrk():
        sys.exit(missing)
    if not options.bundles:
        sys.exit("no bundles under models/: run `make repro` first, or name them with --bundles")
    if unknown := set(options.only) - set(names):
        sys.exit(f"--only: no server is called {' or '.join(sorted(unknown))}; the servers are {'; '.join(names)}")
    servers.many_files()
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as scratch:
        bench = Bench(options.bundles, QUICK if options.quick else Size(), Path(scratch))
        kinds = [kind for kind in KINDS if kind.name in options.only and (bench.size.complete or not kind.models)]
        results = bench.run(kinds)
    results = json.loads(json.dumps(results | report.setting(kinds)))
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(results, indent=1), encoding="utf-8")
    write(results, options.docs or (None if options.quick else Path("docs")))
    return int("Loopline" in results["absent"])


def write(results: Results, docs: Path | None) -> None:
    """Print the page. Also write it with its picture and this machine's file, unless `docs` is None."""
    machine = machines.machine(results)
    page = report.page(results, [machine, *machines.others((docs or Path("docs")) / "benchmarks", machine)])
    print(page)
    if docs:
        (docs / "pictures").mkdir(parents=True, exist_ok=True)
        (docs / "benchmarks.md").write_text(page, encoding="utf-8")
        machines.write(docs / "benchmarks", machine)
        picture.picture(results, docs / "pictures/benchmarks.png")


if __name__ == "__main__":
    sys.exit(main())
