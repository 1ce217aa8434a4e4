"""What Prometheus knows, through its HTTP API, and the counts of drift signals that it or a server holds."""

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
from loopline.lib.http import FetchError, fetch

TIMEOUT = 10.0  # seconds
LARGEST = 32 << 20  # bytes of an answer
ROWS = "loopline_signal_rows_total"


@dataclass(frozen=True)
class Series:
    """One series. points: (time, value), rising in time; an instant query gives one."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def name(self) -> str:
        """Empty where the query computed something."""
        return self.labels.get("__name__", "")

    @property
    def value(self) -> float:
        """The latest."""
        return self.points[-1][1]


def instant(url: str, expression: str, at: float | None = None) -> list[Series]:
    """What holds at a time (default: now, by Prometheus' clock). Raises LooplineError."""
    return _ask(url, "query", {"query": expression} | ({} if at is None else {"time": f"{at:.3f}"}))


def ranged(url: str, expression: str, start: float, end: float, step: float) -> list[Series]:
    """What held from start to end, every `step` seconds. Raises LooplineError."""
    times = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
    return _ask(url, "query_range", {"query": expression} | times)


def window(
    url: str, model: str, version: str, reference: Reference, *, at: float | None = None, window: str = "1h"
) -> WindowCounts:
    """The counts in a window that ends at `at`. Raises LooplineError where that version was not scraped in it."""
    chosen = f'{ROWS}{{model="{model}",version="{version}"}}[{window}]'
    rows = instant(url, f"sum by (model, version, signal, bin) (increase({chosen}))", at)
    if not rows:
        seen = [s.labels for s in instant(url, f"count by (model, version) (count_over_time({ROWS}[{window}]))", at)]
        _there(seen, model, version, f"the Prometheus at {url}, in that window,")
    return _counts(((row.labels, row.value) for row in rows), reference)


def since_start(url: str, model: str, version: str, reference: Reference, *, token: str | None = None) -> WindowCounts:
    """The counts of one server since its start, from its /metrics. Raises LooplineError where it serves another version."""
    from prometheus_client.parser import text_string_to_metric_families

    text = _get(f"{url.rstrip('/')}/metrics", url, token=token).decode("utf-8", "replace")
    try:
        found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except ValueError as error:
        raise LooplineError(f"{url}/metrics is not what Prometheus reads: {error}") from error
    rows = [(sample.labels, sample.value) for sample in found if sample.name == ROWS]
    _there([labels for labels, _ in rows], model, version, f"the server at {url}")
    mine = {"model": model, "version": version}
    return _counts(((labels, value) for labels, value in rows if mine.items() <= labels.items()), reference)


def served(url: str, token: str | None = None) -> dict[str, str]:
    """Model -> short version, as the server or gateway at `url` lists them. Raises LooplineError where no server of models answers."""
    answer = _get(f"{url.rstrip('/')}/v2/repository/index", url, b"{}", token)
    try:
        return dict(sorted((row["name"], row.get("version", "")) for row in json.loads(answer)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LooplineError(f"{url} answers, but not as a server of models does: {error!r:.200}") from error


def rules_window(url: str) -> str:
    """The window of traffic that the rules of this Prometheus judge. Raises LooplineError where it has no rules of ours."""
    answer = _get(f"{url.rstrip('/')}/api/v1/rules?type=record", url)
    try:
        rules = [rule for group in json.loads(answer)["data"]["groups"] for rule in group["rules"]]
        found = next((rule["query"] for rule in rules if rule["name"] == "loopline:signal_rows:window"), "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LooplineError(f"{url} answers, but not as Prometheus does: {error!r:.200}") from error
    if not (window := re.search(rf"{ROWS}\[(\w+)\]", found)):
        raise LooplineError(
            f"Prometheus at {url} has no rules of ours, so nothing tells the window of traffic: name one, or load the rules"
        )
    return window[1]


def _there(seen: Iterable[Mapping[str, str]], model: str, version: str, where: str) -> None:
    """Raises LooplineError, saying what is there instead. A version that was scraped once is there and has no increase yet."""
    known: dict[str, set[str]] = {}
    for labels in seen:
        known.setdefault(labels.get("model", ""), set()).add(labels.get("version", ""))
    if not known:
        raise LooplineError(f"{where} has no drift signals of any model: is it a server of ours, is one scraped?")
    if model not in known:
        raise LooplineError(f"{where} has no drift signals of {model}, but of {', '.join(sorted(known))}")
    if version not in known[model]:
        others = ", ".join(sorted(known[model]))
        raise LooplineError(f"{where} has {model} in version {others}; the bundle's is {version}")


def _counts(rows: Iterable[tuple[Mapping[str, str], float]], reference: Reference) -> WindowCounts:
    """Every signal of the reference has counts; one that no request carried has zeros."""
    found = {name: np.zeros(len(signal.counts)) for name, signal in reference.signals.items()}
    places = {(name, b): i for name, signal in reference.signals.items() for i, b in enumerate(signal.bins)}
    for labels, value in rows:
        key = labels["signal"], labels["bin"]
        if key not in places:
            raise LooplineError(f"signal {key[0]}, bin {key[1]} was counted; the bundle's drift.json has none such")
        found[key[0]][places[key]] += value
    return found


def _ask(url: str, what: str, given: Mapping[str, str]) -> list[Series]:
    body = urllib.parse.urlencode(dict(given) | {"timeout": f"{TIMEOUT:g}s"}).encode()
    return parsed(_get(f"{url.rstrip('/')}/api/v1/{what}", url, body), url)


def parsed(answer: bytes, url: str) -> list[Series]:
    """What Prometheus' HTTP API answered. Raises LooplineError, which names `url`, where it is no such answer."""
    try:
        return [_series(row) for row in json.loads(answer)["data"]["result"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LooplineError(f"{url} answers, but not as Prometheus does: {error!r:.200}") from error


def _series(row: Mapping[str, Any]) -> Series:
    points = row["values"] if "values" in row else [row["value"]]
    return Series(row["metric"], tuple((float(time), float(value)) for time, value in points))


def _get(address: str, url: str, body: bytes | None = None, token: str | None = None) -> bytes:
    """Raises LooplineError; its words name `url`, which the user gave."""
    try:
        return fetch(address, body, credentials.authorization(token), timeout=TIMEOUT, most=LARGEST)
    except FetchError as error:
        if error.status:
            raise LooplineError(_refusal(error, url)) from error
        if isinstance(error.__cause__, TimeoutError):
            raise LooplineError(f"{url} did not answer within {TIMEOUT:g} s") from error
        refused = isinstance(getattr(error.__cause__, "reason", None), ConnectionRefusedError)
        more = "; `loopline status` shows what is up" if refused else ""
        raise LooplineError(f"{url} cannot be reached: {error}{more}") from error


def _refusal(error: FetchError, url: str) -> str:
    try:
        refusal = json.loads(error.content)
        kind, words = refusal["errorType"], refusal["error"]
    except (ValueError, KeyError, TypeError):
        return f"{url} answers {error}: is it the right address?"
    if kind == "timeout":
        return f"Prometheus at {url} took over {TIMEOUT:g} s for the query: {words}"
    return f"Prometheus at {url} refuses the query ({kind}): {words}"
