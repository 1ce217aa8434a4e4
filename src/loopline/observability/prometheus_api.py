"""A client of Prometheus' HTTP API, and the counts of drift signals from Prometheus or from a server's /metrics."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from loopline.drift.reference import Reference
from loopline.drift.statistic import WindowCounts
from loopline.errors import LooplineError
from loopline.lib import credentials
from loopline.lib.http_client import FetchError, fetch

TIMEOUT = 10.0  # seconds
LARGEST = 32 << 20  # largest answer, in bytes
ROWS = "loopline_signal_rows_total"


@dataclass(frozen=True)
class Series:
    """One series. points: pairs of time and value, in order of time; an instant query gives a single pair."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def name(self) -> str:
        """The metric's name; empty for the result of a computation."""
        return self.labels.get("__name__", "")

    @property
    def value(self) -> float:
        """The latest value."""
        return self.points[-1][1]


def instant(url: str, expression: str, at: float | None = None) -> list[Series]:
    """The series at the time `at` (default: now, by Prometheus' clock). Raises LooplineError."""
    return _ask(url, "query", {"query": expression} | ({} if at is None else {"time": f"{at:.3f}"}))


def ranged(url: str, expression: str, start: float, end: float, step: float) -> list[Series]:
    """The series from `start` to `end`, with a point every `step` seconds. Raises LooplineError."""
    times = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
    return _ask(url, "query_range", {"query": expression} | times)


def window(
    url: str, model: str, version: str, reference: Reference, *, at: float | None = None, window: str = "1h"
) -> WindowCounts:
    """The counts in a window that ends at `at`. Raises LooplineError if that version was not scraped in the window."""
    selector = f'{ROWS}{{model="{model}",version="{version}"}}[{window}]'
    rows = instant(url, f"sum by (model, version, signal, bin) (increase({selector}))", at)
    if not rows:
        scraped = instant(url, f"count by (model, version) (count_over_time({ROWS}[{window}]))", at)
        _require([row.labels for row in scraped], model, version, f"the Prometheus at {url}, in that window,")
    return _counts(((row.labels, row.value) for row in rows), reference)


def since_start(url: str, model: str, version: str, reference: Reference, *, token: str | None = None) -> WindowCounts:
    """The counts of one server since its start, from its /metrics. Raises LooplineError if it serves another version."""
    from prometheus_client.parser import text_string_to_metric_families

    text = _get(f"{url.rstrip('/')}/metrics", url, token=token).decode("utf-8", "replace")
    try:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except ValueError as error:
        raise LooplineError(f"{url}/metrics is not in the format that Prometheus reads: {error}") from error
    rows = [(sample.labels, sample.value) for sample in samples if sample.name == ROWS]
    _require([labels for labels, _ in rows], model, version, f"the server at {url}")
    key = {"model": model, "version": version}
    return _counts(((labels, value) for labels, value in rows if key.items() <= labels.items()), reference)


def served(url: str, token: str | None = None) -> dict[str, str]:
    """The short version by model, as the server or gateway at `url` lists them. Raises LooplineError if neither answers there."""
    answer = _get(f"{url.rstrip('/')}/v2/repository/index", url, b"{}", token)
    try:
        return dict(sorted((row["name"], row.get("version", "")) for row in json.loads(answer)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LooplineError(f"{url} answers, but not as a server of models does: {error!r:.200}") from error


def rules_window(url: str) -> str:
    """The window of traffic that the Loopline rules in this Prometheus judge. Raises LooplineError if it has none of them."""
    answer = _get(f"{url.rstrip('/')}/api/v1/rules?type=record", url)
    try:
        rules = [rule for group in json.loads(answer)["data"]["groups"] for rule in group["rules"]]
        query = next((rule["query"] for rule in rules if rule["name"] == "loopline:signal_rows:window"), "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LooplineError(f"{url} answers, but not as Prometheus does: {error!r:.200}") from error
    if not (window := re.search(rf"{ROWS}\[(\w+)\]", query)):
        raise LooplineError(
            f"Prometheus at {url} has no Loopline rules, which tell the traffic window: load them, or give its length"
        )
    return window[1]


def _require(series: Iterable[Mapping[str, str]], model: str, version: str, source: str) -> None:
    """Raise LooplineError, which names what there is instead, if `series`, sets of labels, lack the model or the version.

    A version that was scraped only once passes: it is there, but has no increase yet.
    """
    versions: dict[str, set[str]] = {}
    for labels in series:
        versions.setdefault(labels.get("model", ""), set()).add(labels.get("version", ""))
    if not versions:
        raise LooplineError(
            f"{source} has no drift signals of any model: check that it is, or that it scrapes, a Loopline server"
        )
    if model not in versions:
        raise LooplineError(f"{source} has no drift signals of {model}, but of {', '.join(sorted(versions))}")
    if version not in versions[model]:
        others = ", ".join(sorted(versions[model]))
        raise LooplineError(f"{source} has {model} in version {others}; the bundle's is {version}")


def _counts(rows: Iterable[tuple[Mapping[str, str], float]], reference: Reference) -> WindowCounts:
    """The counts of every signal in the reference; zeros for a signal that no request carried."""
    counts = {name: np.zeros(len(signal.counts)) for name, signal in reference.signals.items()}
    positions = {(name, b): i for name, signal in reference.signals.items() for i, b in enumerate(signal.bins)}
    for labels, value in rows:
        key = labels["signal"], labels["bin"]
        if key not in positions:
            raise LooplineError(
                f"signal {key[0]}, bin {key[1]} was counted, but the bundle's drift.json has no such bin: "
                "the counts are those of another bundle"
            )
        counts[key[0]][positions[key]] += value
    return counts


def _ask(url: str, route: str, parameters: Mapping[str, str]) -> list[Series]:
    body = urllib.parse.urlencode(dict(parameters) | {"timeout": f"{TIMEOUT:g}s"}).encode()
    return parsed(_get(f"{url.rstrip('/')}/api/v1/{route}", url, body), url)


def parsed(answer: bytes, url: str) -> list[Series]:
    """The series in an answer of Prometheus' HTTP API. Raises LooplineError, which names `url`, if it is not such an answer."""
    try:
        return [_series(row) for row in json.loads(answer)["data"]["result"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LooplineError(f"{url} answers, but not as Prometheus does: {error!r:.200}") from error


def _series(row: Mapping[str, Any]) -> Series:
    points = row["values"] if "values" in row else [row["value"]]
    return Series(row["metric"], tuple((float(time), float(value)) for time, value in points))


def _get(address: str, url: str, body: bytes | None = None, token: str | None = None) -> bytes:
    """Fetch `address`. Raises LooplineError, whose message names `url`, the address that the user gave."""
    try:
        return fetch(address, body, credentials.authorization(token), timeout=TIMEOUT, most=LARGEST)
    except FetchError as error:
        if error.status:
            raise LooplineError(_refusal(error, url)) from error
        if isinstance(error.__cause__, TimeoutError):
            raise LooplineError(f"{url} did not answer within {TIMEOUT:g} s") from error
        refused = isinstance(getattr(error.__cause__, "reason", None), ConnectionRefusedError)
        advice = "; `loopline status` shows what is up" if refused else ""
        raise LooplineError(f"{url} cannot be reached: {error}{advice}") from error


def _refusal(error: FetchError, url: str) -> str:
    try:
        refusal = json.loads(error.content)
        kind, message = refusal["errorType"], refusal["error"]
    except (ValueError, KeyError, TypeError):
        return f"{url} answers {error}: check the address"
    if kind == "timeout":
        return f"Prometheus at {url} took over {TIMEOUT:g} s for the query: {message}"
    return f"Prometheus at {url} refuses the query ({kind}): {message}"
