"""Measure what monitoring/prometheus/rules.yml costs a Prometheus that has a day of a small fleet's series.

The series are those of a real server with the bundles of this repository. Each replica has them, and its counters rise at the pace
of the server's traffic.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

import yaml

REPLICAS, DAY, BLOCK = 4, 86400, 7200  # seconds
# Seconds between samples, in the last FINE_SECONDS and before: no rule looks back further
FINE, COARSE, FINE_SECONDS = (15, 60, 6 * 3600)
TRAFFIC_SECONDS = 15
EVERY, EVALUATIONS = 10, 8  # seconds between evaluations, and how many count
COUNTERS = ("_total", "_bucket", "_count", "_sum")
RULES = Path("monitoring/prometheus/rules.yml")


@dataclass(frozen=True)
class Series:
    """A series of a server. labels: without braces. value: at the scrape."""

    name: str
    labels: str
    value: float

    def at(self, elapsed: float, paced: float) -> str:
        """Return its value `elapsed` seconds after its start. paced: seconds of traffic before the scrape."""
        return f"{self.value * elapsed / paced:.0f}" if self.name.endswith(COUNTERS) else f"{self.value:g}"


def measure(bundles: list[Path]) -> dict[str, Any]:
    """Return the seconds that the evaluations of each group and rule take, and the size of the history.

    Needs prometheus, promtool and loopline on the PATH.
    """
    for program in ("prometheus", "promtool", "loopline"):
        if not shutil.which(program):
            sys.exit(f"{program} is needed on the PATH")
    with tempfile.TemporaryDirectory(dir=".loopline") as scratch:
        folder = Path(scratch)
        series, paced = scrape(bundles, folder)
        begin = time.time() - DAY
        samples = history(series, folder, begin, paced)
        with exporters(series, begin, paced) as targets, prometheus(folder, targets) as url:
            figures = evaluations(url)
    figures |= {"series": len(series) * REPLICAS, "samples": samples, "models": len(bundles), "replicas": REPLICAS}
    return figures | {"fine": FINE, "coarse": COARSE, "fine_hours": FINE_SECONDS // 3600}


def scrape(bundles: list[Path], folder: Path) -> tuple[list[Series], float]:
    """Return the series of a server that answers traffic, and the seconds of that traffic."""
    port, metrics = free_port(), free_port()
    command = ["loopline", "serve", *map(str, bundles), "--port", str(port), "--metrics-port", str(metrics)]
    with running(command, folder / "server.log", f"http://127.0.0.1:{metrics}/v2/health/ready"):
        begin = time.monotonic()
        names = [bundle.parent.name for bundle in bundles]
        send = ["loopline", "traffic", *names, "--url", f"http://127.0.0.1:{port}", "--seconds", str(TRAFFIC_SECONDS)]
        subprocess.run(send, check=True, capture_output=True)
        paced = time.monotonic() - begin
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    rows = re.findall(r"^(loopline\w+)(?:\{(.*)\})? (\S+)$", text, re.M)
    return [Series(name, labels, float(value)) for name, labels, value in rows], paced


def lines(series: list[Series], stamps: list[float], begin: float, paced: float) -> Iterator[str]:
    """Yield the samples in OpenMetrics, series by series, in the order of time."""
    for row in series:
        samples = [f" {row.at(stamp - begin, paced)} {stamp:.3f}\n" for stamp in stamps]
        for number in range(REPLICAS):
            labels = ",".join(filter(None, (row.labels, f'instance="{number}",job="loopline"')))
            head = f"{row.name}{{{labels}}}"
            yield "".join(head + sample for sample in samples)
    yield "# EOF\n"


def history(series: list[Series], folder: Path, begin: float, paced: float) -> int:
    """Write a day of the series to Prometheus' database, block by block, and return the number of samples."""
    end, stamp, stamps = begin + DAY, begin, []
    while stamp < end:
        stamps.append(stamp)
        stamp += FINE if stamp >= end - FINE_SECONDS else COARSE
    for block in sorted({int(stamp // BLOCK) for stamp in stamps}):
        file = folder / "block.txt"
        with file.open("w", encoding="utf-8") as out:
            out.writelines(lines(series, [s for s in stamps if s // BLOCK == block], begin, paced))
        command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(file), str(folder / "data")]
        subprocess.run(command, check=True, capture_output=True)
        file.unlink()
    return len(stamps) * len(series) * REPLICAS


@contextmanager
def exporters(series: list[Series], begin: float, paced: float) -> Iterator[str]:
    """Serve the metrics of the replicas, whose counters go on rising. Yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            elapsed = time.time() - begin
            body = "".join(f"{row.name}{{{row.labels}}} {row.at(elapsed, paced)}\n" for row in series).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """Run a Prometheus that scrapes the replicas and evaluates the rules every EVERY seconds. Yield its address."""
    port = free_port()
    jobs = [{"targets": [target], "labels": {"instance": str(n), "__metrics_path__": f"/{n}"}} for n in range(REPLICAS)]
    scrapes = [{"job_name": "loopline", "static_configs": jobs}]
    config = {"global": {"scrape_interval": f"{FINE}s"}, "rule_files": ["rules.yml"], "scrape_configs": scrapes}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    often = re.sub(r"interval: \w+", f"interval: {EVERY}s", RULES.read_text(encoding="utf-8"))
    (folder / "rules.yml").write_text(often, encoding="utf-8")
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    url = f"http://127.0.0.1:{port}"
    with running([*command, f"--web.listen-address=127.0.0.1:{port}"], folder / "prometheus.log", f"{url}/-/ready"):
        yield url


def evaluations(url: str) -> dict[str, Any]:
    """Return the seconds that EVALUATIONS evaluations of each group took, and those of its slowest rules, as Prometheus states them.

    The first evaluation of each group is left out.
    """
    seen: dict[str, dict[str, Any]] = {}
    until = time.monotonic() + (EVALUATIONS + 4) * EVERY + 60
    while not seen or min(map(len, seen.values())) < EVALUATIONS + 1:
        if time.monotonic() > until:
            sys.exit("Prometheus did not evaluate its rules in time")
        time.sleep(EVERY / 5)
        with urllib.request.urlopen(f"{url}/api/v1/rules", timeout=30) as answer:  # noqa: S310 - our own address
            for group in json.load(answer)["data"]["groups"]:
                rules = [rule for rule in group["rules"] if rule["health"] != "unknown"]
                if len(rules) == len(group["rules"]):
                    seen.setdefault(group["name"], {})[group["lastEvaluation"]] = group
    figures = {}
    for name, groups in seen.items():
        kept = list(groups.values())[1:]
        failing = {
            rule["name"]: rule["lastError"] for group in kept for rule in group["rules"] if rule["health"] != "ok"
        }
        assert not failing, f"rules that fail cost nothing: {failing}"
        spent = [group["evaluationTime"] for group in kept]
        times_of: dict[str, list[float]] = {}
        for group in kept:
            for rule in group["rules"]:
                times_of.setdefault(rule["name"], []).append(rule["evaluationTime"])
        slowest = sorted(((median(times), rule) for rule, times in times_of.items()), reverse=True)[:3]
        figures[name] = {"median": median(spent), "most": max(spent), "evaluations": len(spent), "slowest": slowest}
    query = f"{url}/api/v1/query?query=count(loopline:drift_score)"
    with urllib.request.urlopen(query, timeout=30) as answer:  # noqa: S310 - our own address
        assert json.load(answer)["data"]["result"], "no score was recorded: the rules did not see the history"
    return {"groups": figures}


def free_port() -> int:
    """Return a port that no program uses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(command: list[str], log: Path, ready: str) -> Iterator[None]:
    """Run a program during the block, which begins when it answers at `ready`."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        _wait(partial(urllib.request.urlopen, ready, timeout=2), process, log)
        yield
    finally:
        process.terminate()
        process.wait(60)


def _wait(ask: Callable[[], Any], process: subprocess.Popen[bytes], log: Path, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            with ask():
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"{process.args!r:.60} did not start:\n{log.read_text(errors='replace')[-1000:]}")
            time.sleep(0.1)
