"""What the judge judges: the gateway's log of the lanes on trial, their servers' counters, labels, and a replay on both."""

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
from loopline.lib.http import FetchError, fetch
from loopline.rollout import judge
from loopline.tasks.signals import CLASS

SURE = ("top_probability", "top_score")  # signals that are a number for every answer that is one
SIGNALS = "loopline_signal_rows_total"
TIMEOUT = 10.0
Given = bytes | str
Series = Iterable[tuple[str, Mapping[str, str], float]]


class LoggedAnswer(NamedTuple):
    """A line of the gateway's log. at: seconds since the epoch. server: its slot; a name in k is the champion's, as a backup."""

    at: float
    model: str
    lane: str
    server: str
    status: int
    seconds: float | None


class GatewayLog:
    """The gateway's log, read on from where it was left."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        """offset: bytes to leave out."""
        self.path, self.offset = path, offset

    def read(self) -> Iterator[LoggedAnswer]:
        """What came since the last time. A line that is not yet whole is left for the next."""
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
    """A canary's answers, counted: of all its steps, and of this one."""

    def __init__(self, model: str) -> None:
        """Nothing counted yet."""
        self.model = model
        self.requests: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.stood_in = 0
        self.seconds: dict[str, list[float]] = {BASELINE: [], CHALLENGER: []}
        self.step = 0.0

    def begin(self, at: float) -> None:
        """A step began then; what was before counts for the canary as a whole."""
        if at != self.step:
            self.step = at
            for one in self.seconds.values():
                one.clear()

    def add(self, answers: Iterable[LoggedAnswer]) -> None:
        """Count these. An error is a 5xx: what a client did wrong is not the model's, and who left got no answer."""
        for one in answers:
            if one.model != self.model or one.lane not in self.seconds or one.status < 100:
                continue
            self.requests[one.lane] += 1
            self.errors[one.lane] += one.status >= 500
            self.stood_in += one.lane == CHALLENGER and not one.server.startswith("s")
            if one.at >= self.step and one.seconds is not None:
                self.seconds[one.lane].append(one.seconds)

    def lane(self, name: str, classes: Mapping[str, float], labels: tuple[float, float]) -> judge.LaneCounts:
        """As the judge takes it."""
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
    """What a server's /metrics says: (name, labels, value). Raises LooplineError if it does not answer.

    token: what the server wants as bearer token, if it wants one.
    """
    from prometheus_client.parser import text_string_to_metric_families

    try:
        text = fetch(f"{address}/metrics", headers=credentials.authorization(token), timeout=TIMEOUT).decode()
    except FetchError as error:
        raise LooplineError(f"{address}/metrics does not answer: {error}") from error
    return [(s.name, s.labels, s.value) for family in text_string_to_metric_families(text) for s in family.samples]


def classes(rows: Series, model: str) -> tuple[dict[str, float], int]:
    """Predicted class -> samples, and how many answers were no number, of a server since its start."""
    found: dict[str, float] = {}
    invalid = 0.0
    for name, labels, value in rows:
        if name == SIGNALS and labels["model"] == model:
            if labels["signal"] == CLASS:
                found[labels["bin"]] = found.get(labels["bin"], 0.0) + value
            invalid += value if labels["signal"] in SURE and labels["bin"] == "nan" else 0.0
    return found, int(invalid)


def labels(prometheus: str, model: str, version: str, since: float) -> tuple[float, float]:
    """Labelled answers of a version that came after a time (seconds of the epoch), and the sum of their quality.

    What came before was of other traffic. (0, 0) where none came, or nobody counts them.
    """
    from loopline.observability import prometheus_api

    found = []
    for name in ("loopline_labelled_rows_total", "loopline_labelled_quality_total"):
        try:
            both = [
                prometheus_api.instant(prometheus, f'sum({name}{{model="{model}",version="{version}"}})', at)
                for at in (None, since)
            ]
        except LooplineError:  # no evidence is no reason to stop
            return 0.0, 0.0
        now, before = (rows[0].value if rows else 0.0 for rows in both)
        found.append(now - before)
    return found[0], found[1]


def recent(folder: Path, model: str, count: int) -> list[Given]:
    """The journal's latest inputs that were answered and kept. Raises LooplineError where there is no journal."""
    from loopline.journal.reader import JournalReader

    return [entry.input for entry in JournalReader(folder).latest(model, count) if entry.input is not None]


def replay(
    inputs: Iterable[Given], model: str, champion: str, challenger: str, token: str | None = None
) -> judge.Shadow:
    """Ask both servers the same, one input after the other, now this one first and now that one; none of it counts as traffic."""
    seen: Counter[str] = Counter()
    ratios, said = [], {champion: Counter[str](), challenger: Counter[str]()}
    for number, given in enumerate(inputs):
        order = (champion, challenger) if number % 2 else (challenger, champion)
        answers = {address: _ask(address, model, given, token) for address in order}
        (theirs, their_seconds), (ours, our_seconds) = answers[champion], answers[challenger]
        if theirs is None:
            continue  # such an input says nothing of the challenger
        seen["inputs"] += 1
        if ours is None:
            seen["failed"] += 1
            continue
        ratios.append(our_seconds / their_seconds)
        seen["invalid"] += not _numbers(ours)
        a, b = _classes(theirs), _classes(ours)
        seen["agreed"] += a == b
        said[champion].update(a)
        said[challenger].update(b)
    both = all(counts.total() for counts in said.values())
    expected = judge.total_variation(said[challenger], said[champion])[0] if both else 0.0
    return judge.Shadow(
        inputs=seen["inputs"],
        failed=seen["failed"],
        invalid=seen["invalid"],
        agreed=seen["agreed"],
        ratios=np.array(ratios),
        expected=expected,
    )


def _ask(address: str, model: str, given: Given, token: str | None) -> tuple[Any, float]:
    """The prediction, None if there is none; and the seconds it took."""
    text = isinstance(given, str)
    body = json.dumps({"text": given}).encode() if isinstance(given, str) else given
    headers = {"Content-Type": "application/json" if text else "application/octet-stream", "X-Loopline-Probe": "1"}
    headers |= credentials.authorization(token)
    start = time.perf_counter()
    try:
        content = fetch(f"{address}/predict/{model}", body, headers, timeout=TIMEOUT)
        seconds = time.perf_counter() - start
        return json.loads(content)["predictions"][0], seconds
    except (FetchError, ValueError, KeyError, IndexError, TypeError):
        return None, 0.0


def _classes(prediction: Any) -> list[str]:
    """What it says: one label, or the boxes' labels, sorted; ["-"] for no box."""
    if "label" in prediction:
        return [prediction["label"]]
    return sorted(box["label"] for box in prediction["boxes"]) or ["-"]


def _numbers(value: Any) -> bool:
    """Is every figure in it a number? What is none is written as null."""
    if isinstance(value, dict):
        return all(map(_numbers, value.values()))
    if isinstance(value, list):
        return all(map(_numbers, value))
    return isinstance(value, str) or (isinstance(value, int | float) and isfinite(value))
