"""The sentinel: golden inputs through the real route of a live server, compared with the answers the model gave when it was released.

A difference means that training and serving do not do the same: another preprocessing, bundle or runtime.
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
from loopline.lib.http import FetchError, fetch
from loopline.release import bundle

TOLERANCE = 0.05  # an INT8 graph's answers differ by so much from one kind of processor to another
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
    """A model and what it must answer."""

    name: str
    version: str
    samples: list[golden.GoldenSample]


def load(folders: Sequence[Path]) -> list[Watched]:
    """The golden samples of bundles. Raises LooplineError where one has none."""
    found = []
    for folder in folders:
        opened = bundle.read(folder)
        if not (folder / "golden.json").exists():
            raise LooplineError(f"{folder} has no golden.json: make the bundle anew with `dvc repro`")
        found.append(Watched(opened.manifest.name, opened.version[:12], golden.read(folder / "golden.json")))
    return found


def check(url: str, watched: Watched, sample: golden.GoldenSample, token: str | None = None) -> tuple[Result, float]:
    """Ask the server at `url`; what came back, and how far the answer is from the golden one."""
    text = isinstance(sample.given, str)
    body = json.dumps({"text": sample.given}).encode() if isinstance(sample.given, str) else sample.given
    headers = {"Content-Type": "application/json" if text else "application/octet-stream", "X-Loopline-Probe": "1"}
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
    """Checks in rounds and counts."""

    def __init__(self, url: str, watched: Sequence[Watched], token: str | None = None) -> None:
        """url: of the server. Raises LooplineError where it is none."""
        from prometheus_client import CollectorRegistry, Counter, Gauge

        if not url.startswith(("http://", "https://")):
            raise LooplineError(f"{url} is no address of a server: http://127.0.0.1:8080")
        self.url, self.watched, self.token = url.rstrip("/"), watched, token
        self.registry = CollectorRegistry()
        self.checks = Counter(CHECKS, *METRICS[f"{CHECKS}_total"], registry=self.registry)
        self.difference = Gauge(DIFFERENCE, *METRICS[DIFFERENCE], registry=self.registry)
        for one in watched:
            for result in ("same", "different", "other_version", "failed"):
                self.checks.labels(one.name, one.version, result)

    def round(self) -> dict[str, list[Result]]:
        """Check everything once: model -> results."""
        found: dict[str, list[Result]] = {}
        for one in self.watched:
            largest = 0.0
            for sample in one.samples:
                result, difference = check(self.url, one, sample, self.token)
                self.checks.labels(one.name, one.version, result).inc()
                found.setdefault(one.name, []).append(result)
                largest = max(largest, difference)
            self.difference.labels(one.name, one.version).set(largest)
        return found

    def run(self, every: float, port: int, stop: threading.Event, host: str = "127.0.0.1") -> None:
        """Rounds every so many seconds until `stop`, metrics on `port` of the address `host`."""
        with exported(self.registry, host, port):
            while not stop.is_set():
                start = time.monotonic()
                self.round()
                stop.wait(max(0.0, every - (time.monotonic() - start)))
