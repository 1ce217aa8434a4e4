"""`make bench SUITE=serving`: Loopline's server beside those that people would pick instead, in one run, interleaved, as medians.

The server has the first core to itself and the load generator the last. Needs the bundles of `make repro` and wrk. Writes
docs/benchmarks.md and docs/pictures/benchmarks.png. `--quick` only shows that everything works: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.serving import asks, load, picture, report, servers
from benchmarks.serving.asks import Sample
from benchmarks.serving.servers import KINDS, Kind, Server

FILE_CONNECTIONS = 16
OPEN_CONNECTIONS, FLOOD_CONNECTIONS = 64, 2048
FLOOD_PATIENCE = 0.01  # seconds until a client without a free connection gives up
TOLD_MS = 200  # what the server is told in a flood; an answer is of use within 250: the way there and back takes time


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    rounds: int = 3
    seconds: int = 2
    connections: tuple[int, ...] = (1, 16, 64)
    idle: float = 5.0
    open: float = 4.0
    flood: float = 20.0
    after: float = 3.0
    warm: bool = True
    whole: bool = True  # else without the slowest to start, a start with one bundle, and the best peer's open loop


QUICK = Size(rounds=1, seconds=1, connections=(1, 16), idle=0.5, open=1.0, flood=2.0, whole=False)
Results = dict[str, Any]


class Bench:
    """One run. results: lists of what each round saw, by what was measured."""

    def __init__(self, folders: Sequence[Path], size: Size, scratch: Path) -> None:
        """folders: the bundles."""
        self.folders, self.size, self.scratch = folders, size, scratch
        self.samples = asks.samples(folders)
        self.timed = [sample for sample in self.samples if sample.task in ("classification", "detection")]
        self.closed: dict[str, list[Any]] = defaultdict(list)
        self.absent: dict[str, str] = {}
        self.results: Results = {"closed": self.closed, "absent": self.absent}

    def engines(self) -> None:
        """The limit, in this round."""
        for sample in self.timed:
            folder = self.folders[self.samples.index(sample)]
            np.save(self.scratch / "sample.npy", sample.array)
            found = load.engine(folder, list(sample.expected), self.scratch / "sample.npy", self.size.seconds / 2)
            self.closed[f"engine/{sample.model}"].append(found)

    def round(self, kind: Kind, number: int) -> None:
        """Start it with all bundles, see how it is, load it, end it."""
        folders, samples = self._of(kind)
        with servers.running(kind, folders, samples, self.scratch) as server:
            self.closed[f"{kind.name}/start"].append(server.start_seconds)
            if number == 0:
                self.closed[f"{kind.name}/memory"].append(server.memory())
                self.closed[f"{kind.name}/idle"].append(self._idle(server))
            for sample in samples:
                if sample in self.timed:
                    self._closed(kind, server, sample)
        if self.size.whole and number == 0 and len(folders) > 1:
            one = [place for place, sample in enumerate(samples) if sample.task == "classification"]
            with servers.running(kind, [folders[one[0]]], [samples[one[0]]], self.scratch) as server:
                self.closed[f"{kind.name}/memory_one"].append(server.memory())

    def _of(self, kind: Kind) -> tuple[list[Path], list[Sample]]:
        pairs = [
            (folder, sample)
            for folder, sample in zip(self.folders, self.samples, strict=True)
            if not kind.models or sample.model in kind.models
        ]
        return [folder for folder, _ in pairs], [sample for _, sample in pairs]

    def _idle(self, server: Server) -> float:
        time.sleep(1)
        before = server.cpu_seconds()
        time.sleep(self.size.idle)
        return (server.cpu_seconds() - before) / self.size.idle * 100

    def _closed(self, kind: Kind, server: Server, sample: Sample) -> None:
        ask = kind.ask(sample)
        self._warm(server, ask)
        for connections in self.size.connections:
            key = f"{kind.name}/{sample.model}/{connections}"
            found = load.closed(
                server.port, ask, connections=connections, seconds=self.size.seconds, scratch=self.scratch
            )
            self.closed[key].append(found)
        if kind.file and sample.task == "classification":
            ask = kind.file(sample)
            only = replace(sample, expected={"probabilities": sample.expected["probabilities"]})
            if wrong := asks.check(server.port, ask, only):
                raise servers.Failed(f"the image file's route: {wrong}")
            found = load.closed(
                server.port, ask, connections=FILE_CONNECTIONS, seconds=self.size.seconds, scratch=self.scratch
            )
            self.closed[f"{kind.name}/file"].append(found)

    def _warm(self, server: Server, ask: asks.Ask) -> None:
        if self.size.warm:
            load.closed(server.port, ask, connections=16, seconds=1, scratch=self.scratch)

    def open_loops(self, kind: Kind) -> None:
        """50 and 80 % of its own peak, then four times too much, then 50 % again."""
        folders, samples = self._of(kind)
        with servers.running(kind, folders, samples, self.scratch) as server:
            for sample in self.timed:
                ask = kind.ask(sample)
                peak = self.peak(kind, sample)
                seconds = self.size.open
                self._warm(server, ask)
                for share in (0.5, 0.8):
                    phases = [(share * peak, 0.5), (share * peak, seconds)]
                    said = load.scheduled(server.port, ask, phases, connections=OPEN_CONNECTIONS, scratch=self.scratch)
                    self.closed[f"{kind.name}/{sample.model}/open/{share}"].append(said[1])
                hurried = replace(ask, headers=ask.headers | {"X-Request-Timeout-Ms": str(TOLD_MS)})
                phases = [(0.5 * peak, 0.5), (4 * peak, self.size.flood), (0.5 * peak, self.size.after)]
                said = load.scheduled(
                    server.port,
                    hurried,
                    phases,
                    connections=FLOOD_CONNECTIONS,
                    scratch=self.scratch,
                    patience=FLOOD_PATIENCE,
                )
                self.closed[f"{kind.name}/{sample.model}/flood"].append(
                    {"peak": peak, "before": said[0], "flood": said[1], "after": said[2]}
                )

    def peak(self, kind: Kind, sample: Sample) -> float:
        """Its best closed-loop rate: the median over rounds, the best number of connections."""
        rates = [
            median(found["rate"] for found in self.closed[f"{kind.name}/{sample.model}/{connections}"])
            for connections in self.size.connections
        ]
        return max(rates)

    def run(self, kinds: Sequence[Kind]) -> Results:
        """All of it. What cannot be started or answers wrongly is kept in `absent` with the reason."""
        began = time.monotonic()
        for number in range(self.size.rounds):
            self.engines()
            for kind in kinds:
                if kind.name not in self.absent:
                    say(began, f"round {number + 1}: {kind.name}")
                    self._try(kind, lambda kind=kind, number=number: self.round(kind, number))
        there = [kind for kind in kinds if kind.name not in self.absent]
        ours = [kind for kind in there if not kind.package]
        peers = [kind for kind in there if kind.package and not kind.models]
        best = sorted(peers, key=lambda kind: self.peak(kind, self.timed[0]))[-1:]
        for kind in (*ours, *(best if self.size.whole else [])):
            say(began, f"open loop: {kind.name}")
            self._try(kind, lambda kind=kind: self.open_loops(kind))
        self.results["best"] = best[0].name if best else ""
        self.results["minutes"] = (time.monotonic() - began) / 60
        return self.results

    def _try(self, kind: Kind, call: Any) -> None:
        try:
            call()
        except (servers.Failed, RuntimeError, OSError) as error:
            self.absent[kind.name] = str(error)
            print(f"{kind.name}: {error}", file=sys.stderr)


def say(began: float, what: str) -> None:
    """Where the run is."""
    print(f"{time.monotonic() - began:5.0f} s  {what}", file=sys.stderr, flush=True)


def main() -> int:
    """Returns the exit code: 1 where Loopline itself failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--bundles", nargs="+", type=Path, default=sorted(Path("models").glob("*/bundle")))
    parser.add_argument("--quick", action="store_true", help="under 2 minutes: shows that it works, measures nothing")
    parser.add_argument("--only", nargs="+", default=[kind.name for kind in KINDS], help="these servers")
    parser.add_argument(
        "--docs", type=Path, help="where to write benchmarks.md and pictures/ (default: docs; nowhere if quick)"
    )
    parser.add_argument("--results", type=Path, default=Path(".loopline/bench-serving.json"), help="all figures")
    options = parser.parse_args()
    if missing := load.has_wrk():
        sys.exit(missing)
    if not options.bundles:
        sys.exit("no bundles under models/: run `make repro` first, or name them with --bundles")
    if unknown := set(options.only) - {kind.name for kind in KINDS}:
        sys.exit(f"no server {', '.join(sorted(unknown))}: {', '.join(kind.name for kind in KINDS)} are there")
    servers.many_files()
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as scratch:
        bench = Bench(options.bundles, QUICK if options.quick else Size(), Path(scratch))
        results = bench.run(
            [kind for kind in KINDS if kind.name in options.only and (bench.size.whole or not kind.models)]
        )
    results = json.loads(json.dumps(results | report.machine()))
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(results, indent=1), encoding="utf-8")
    page = report.page(results, bench.size.connections)
    print(page)
    docs = options.docs or (None if options.quick else Path("docs"))
    if docs:
        (docs / "pictures").mkdir(parents=True, exist_ok=True)
        (docs / "benchmarks.md").write_text(page, encoding="utf-8")
        picture.picture(results, docs / "pictures/benchmarks.png")
    return int("Loopline" in results["absent"])


if __name__ == "__main__":
    sys.exit(main())
