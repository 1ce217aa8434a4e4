"""The sentinel sends golden inputs to a live server and compares the answers with those that the model gave at its release.

The inputs take the same route as a client's. A difference means skew: another preprocessing, bundle or runtime than in training.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loopline.drift import golden
from loopline.errors import LooplineError
from loopline.lib import credentials
from loopline.lib.exporter import exported
from loopline.lib.http_client import FetchError, fetch
from loopline.release import bundle

TOLERANCE = 0.05  # the answers of an INT8 graph differ by up to this much between kinds of processors
TIMEOUT = 10.0  # seconds
Result = Literal["same", "different", "other_version", "failed"]
CHECKS, DIFFERENCE = "loopline_sentinel_checks", "loopline_sentinel_difference"
METRICS = {  # name -> help, labels
    f"{CHECKS}_total": ("Golden inputs sent, by what came back.", ("model", "version", "result")),
    DIFFERENCE: (
        "Largest difference of the last round's answers, 1 where they are of another kind.",
        ("model", "version"),
    ),
}


@dataclass(frozen=True)
class Watched:
    """A model with its golden samples."""

    name: str
    version: str
    samples: list[golden.GoldenSample]


def load(folders: Sequence[Path]) -> list[Watched]:
    """Read the golden samples of bundles. Raises LooplineError if one has none."""
    models = []
    for folder in folders:
        opened = bundle.read(folder)
        if not (folder / "golden.json").exists():
            raise LooplineError(f"{folder} has no golden.json: make the bundle again with `dvc repro`")
        models.append(Watched(opened.manifest.name, opened.version[:12], golden.read(folder / "golden.json")))
    return models


def check(url: str, watched: Watched, sample: golden.GoldenSample, token: str | None = None) -> tuple[Result, float]:
    """Send `sample` to the server at `url`; return the result, and the distance to the golden answer, from 0 to 1."""
    is_text = isinstance(sample.given, str)
    body = json.dumps({"text": sample.given}).encode() if isinstance(sample.given, str) else sample.given
    headers = {"Content-Type": "application/json" if is_text else "application/octet-stream", "X-Loopline-Probe": "1"}
    headers["X-Request-Timeout-Ms"] = f"{TIMEOUT * 1000:.0f}"
    headers |= credentials.authorization(token)
    try:
        answer = json.loads(fetch(f"{url}/predict/{watched.name}", body, headers, timeout=TIMEOUT))
        if answer["version"] != watched.version:
            return "other_version", 0.0
        distance = golden.distance(sample.answer, answer["predictions"][0])
    except (FetchError, ValueError, KeyError, IndexError, TypeError):
        return "failed", 0.0
    return ("same" if distance <= TOLERANCE else "different"), min(distance, 1.0)


class Sentinel:
    """Checks all models in rounds and counts the results."""

    def __init__(self, url: str, watched: Sequence[Watched], token: str | None = None) -> None:
        """url: the server's address. Raises LooplineError if it does not begin with http:// or https://."""
        from prometheus_client import CollectorRegistry, Counter, Gauge

        if not url.startswith(("http://", "https://")):
            raise LooplineError(f"{url} is no address of a server: give one such as http://127.0.0.1:8080")
        self.url, self.watched, self.token = url.rstrip("/"), watched, token
        self.registry = CollectorRegistry()
        self.checks = Counter(CHECKS, *METRICS[f"{CHECKS}_total"], registry=self.registry)
        self.difference = Gauge(DIFFERENCE, *METRICS[DIFFERENCE], registry=self.registry)
        for model in watched:
            for result in ("same", "different", "other_version", "failed"):
                self.checks.labels(model.name, model.version, result)

    def round(self) -> dict[str, list[Result]]:
        """Check every golden sample once; return the results by model."""
        results: dict[str, list[Result]] = {}
        for model in self.watched:
            largest = 0.0
            for sample in model.samples:
                result, difference = check(self.url, model, sample, self.token)
                self.checks.labels(model.name, model.version, result).inc()
                results.setdefault(model.name, []).append(result)
                largest = max(largest, difference)
            self.difference.labels(model.name, model.version).set(largest)
        return results

    def run(self, every: float, port: int, stop: threading.Event, host: str = "127.0.0.1") -> None:
        """Start a round every `every` seconds until `stop` is set; serve the metrics at `host`:`port`."""
        with exported(self.registry, host, port):
            while not stop.is_set():
                start = time.monotonic()
                self.round()
                stop.wait(max(0.0, every - (time.monotonic() - start)))
