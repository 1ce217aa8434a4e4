"""Evidence for the judge: the gateway's log of the lanes on trial, their servers' counters, labels, and a replay on both."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loopline.errors import LooplineError
from loopline.fleet.gateway import BASELINE, CHALLENGER
from loopline.lib import credentials
from loopline.lib.http_client import FetchError, fetch
from loopline.rollout import judge
from loopline.tasks.signals import CLASS

# NaN in one of these signals means that the answer contains NaN.
SURE = ("top_probability", "top_score")
SIGNALS = "loopline_signal_rows_total"
TIMEOUT = 10.0
ModelInput = bytes | str
Series = Iterable[tuple[str, Mapping[str, str], float]]


class LoggedAnswer(NamedTuple):
    """A line of the gateway's log.

    at: seconds since the epoch. server: name of the slot; one that begins with k holds a server of the champion, as a backup.
    status: the HTTP status, -1 if the client left before the answer. seconds: latency, None if there was no answer.
    """

    at: float
    model: str
    lane: str
    server: str
    status: int
    seconds: float | None


class GatewayLog:
    """Reader of the gateway's log that continues where the last read ended."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        """offset: bytes at the start of the log to skip."""
        self.path, self.offset = path, offset

    def read(self) -> Iterator[LoggedAnswer]:
        """Yield the answers that were logged since the last read. A line that is still incomplete is left for the next read."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.offset += len(line)
                words = line.decode("utf-8", "replace").split()
                if len(words) == 7 and words[0] == "lane":
                    yield LoggedAnswer(
                        int(words[1]) / 1e6,
                        words[2],
                        words[3],
                        words[4],
                        int(words[5]),
                        int(words[6]) / 1e6 if words[6].isdigit() else None,
                    )


class Tally:
    """Counts of a canary's answers: requests and errors over all its steps, latencies of the present step."""

    def __init__(self, model: str) -> None:
        """model: only its answers are counted."""
        self.model = model
        self.requests: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.stood_in = 0
        self.seconds: dict[str, list[float]] = {BASELINE: [], CHALLENGER: []}
        self.step = 0.0

    def begin(self, at: float) -> None:
        """Note that a step began at this time, in seconds of the epoch, and forget the latencies of the step before."""
        if at != self.step:
            self.step = at
            for latencies in self.seconds.values():
                latencies.clear()

    def add(self, answers: Iterable[LoggedAnswer]) -> None:
        """Count these answers. Only a 5xx is an error: a 4xx is the client's mistake. A client that left is not counted."""
        for answer in answers:
            if answer.model != self.model or answer.lane not in self.seconds or answer.status < 100:
                continue
            self.requests[answer.lane] += 1
            self.errors[answer.lane] += answer.status >= 500
            self.stood_in += answer.lane == CHALLENGER and not answer.server.startswith("s")
            if answer.at >= self.step and answer.seconds is not None:
                self.seconds[answer.lane].append(answer.seconds)

    def lane(self, name: str, classes: Mapping[str, float], labels: tuple[float, float]) -> judge.LaneCounts:
        """The counts of this lane for the judge. labels: labelled answers, and the sum of their quality."""
        return judge.LaneCounts(
            requests=self.requests[name],
            errors=self.errors[name],
            step=len(self.seconds[name]),
            seconds=np.array(self.seconds[name]),
            classes=classes,
            labelled=labels[0],
            right=labels[1],
        )


def series(address: str, token: str | None = None) -> Series:
    """All samples of a server's /metrics: (name, labels, value). Raises LooplineError if the server does not answer.

    token: bearer token, if the server demands one.
    """
    from prometheus_client.parser import text_string_to_metric_families

    try:
        text = fetch(f"{address}/metrics", headers=credentials.authorization(token), timeout=TIMEOUT).decode()
    except FetchError as error:
        raise LooplineError(f"{address}/metrics does not answer: {error}") from error
    families = text_string_to_metric_families(text)
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def classes(rows: Series, model: str) -> tuple[dict[str, float], int]:
    """Predicted class -> samples, and the number of answers that were NaN, since the servers started."""
    counts: dict[str, float] = {}
    invalid = 0.0
    for name, labels, value in rows:
        if name == SIGNALS and labels["model"] == model:
            if labels["signal"] == CLASS:
                counts[labels["bin"]] = counts.get(labels["bin"], 0.0) + value
            invalid += value if labels["signal"] in SURE and labels["bin"] == "nan" else 0.0
    return counts, int(invalid)


def labels(prometheus: str, model: str, version: str, since: float) -> tuple[float, float]:
    """Number of labelled answers of a version since a time (seconds of the epoch), and the sum of their quality.

    Earlier labels belong to other traffic. (0, 0) if no labels came, or if Prometheus does not answer.
    """
    from loopline.observability import prometheus_api

    grown = []
    for name in ("loopline_labelled_rows_total", "loopline_labelled_quality_total"):
        try:
            both = [
                prometheus_api.instant(prometheus, f'sum({name}{{model="{model}",version="{version}"}})', at)
                for at in (None, since)
            ]
        except LooplineError:  # missing labels do not end a rollout
            return 0.0, 0.0
        now, before = (rows[0].value if rows else 0.0 for rows in both)
        grown.append(now - before)
    return grown[0], grown[1]


def recent(folder: Path, model: str, count: int) -> list[ModelInput]:
    """The journal's latest inputs that were answered and kept, newest first. Raises LooplineError if there is no journal."""
    from loopline.journal.reader import JournalReader

    return [entry.input for entry in JournalReader(folder).latest(model, count) if entry.input is not None]


def replay(
    inputs: Iterable[ModelInput], model: str, champion: str, challenger: str, token: str | None = None
) -> judge.Shadow:
    """Ask both servers every input, and compare the answers. The order of the two servers alternates from input to input.

    champion, challenger: addresses. The requests are marked as probes, so none of them counts as traffic.
    """
    counts: Counter[str] = Counter()
    ratios, predicted = [], {champion: Counter[str](), challenger: Counter[str]()}
    for number, content in enumerate(inputs):
        order = (champion, challenger) if number % 2 else (challenger, champion)
        answers = {address: _ask(address, model, content, token) for address in order}
        champion_answer, champion_seconds = answers[champion]
        challenger_answer, challenger_seconds = answers[challenger]
        if champion_answer is None:
            continue  # such an input tells nothing about the challenger
        counts["inputs"] += 1
        if challenger_answer is None:
            counts["failed"] += 1
            continue
        ratios.append(challenger_seconds / champion_seconds)
        counts["invalid"] += not _numbers(challenger_answer)
        champion_classes, challenger_classes = _classes(champion_answer), _classes(challenger_answer)
        counts["agreed"] += champion_classes == challenger_classes
        predicted[champion].update(champion_classes)
        predicted[challenger].update(challenger_classes)
    both = all(classes.total() for classes in predicted.values())
    expected = judge.total_variation(predicted[challenger], predicted[champion])[0] if both else 0.0
    return judge.Shadow(
        inputs=counts["inputs"],
        failed=counts["failed"],
        invalid=counts["invalid"],
        agreed=counts["agreed"],
        ratios=np.array(ratios),
        expected=expected,
    )


def _ask(address: str, model: str, content: ModelInput, token: str | None) -> tuple[Any, float]:
    """The prediction, or None if there is none, and the seconds that it took."""
    if isinstance(content, str):
        body, kind = json.dumps({"text": content}).encode(), "application/json"
    else:
        body, kind = content, "application/octet-stream"
    headers = {"Content-Type": kind, "X-Loopline-Probe": "1", "X-Request-Timeout-Ms": f"{TIMEOUT * 1000:.0f}"}
    headers |= credentials.authorization(token)
    start = time.perf_counter()
    try:
        answer = fetch(f"{address}/predict/{model}", body, headers, timeout=TIMEOUT)
        seconds = time.perf_counter() - start
        return json.loads(answer)["predictions"][0], seconds
    except (FetchError, ValueError, KeyError, IndexError, TypeError):
        return None, 0.0


def _classes(prediction: Any) -> list[str]:
    """The predicted label, or the sorted labels of all boxes; ["-"] if there is no box."""
    if "label" in prediction:
        return [prediction["label"]]
    return sorted(box["label"] for box in prediction["boxes"]) or ["-"]


def _numbers(value: Any) -> bool:
    """Return whether every figure in a JSON value is a finite number. The server writes NaN as null."""
    if isinstance(value, dict):
        return all(map(_numbers, value.values()))
    if isinstance(value, list):
        return all(map(_numbers, value))
    return isinstance(value, str) or (isinstance(value, int | float) and isfinite(value))
