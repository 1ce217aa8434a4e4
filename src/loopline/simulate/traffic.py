"""`loopline traffic`: replays test samples, or a shift of them, to a live server at a steady rate."""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
import urllib.parse
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loopline.errors import LooplineError
from loopline.lib.credentials import authorization
from loopline.observability import prometheus_api
from loopline.simulate import other_domain, shifts

CLIENTS = 8
TIMEOUT = 10.0
MOST_FOREIGN = 2000  # samples of another data set
NO_ANSWER, NOT_SENT = "no answer", "not sent"  # beside HTTP's statuses
CLEAN, PRIOR, NOISY, OTHER = "clean", "prior", "noisy", "other-domain"


@dataclass(frozen=True, kw_only=True)
class TrafficPlan:
    """What is sent. rate: requests a second, over all models.

    profile: `clean`, `prior` (two classes only), `other-domain` (another data set), a shift, or `noisy`: noise in images, typos in
    texts. dataset: which other data set or folder; by default the companion of the model's own. token: of the server, if it
    wants one.
    """

    url: str
    profile: str = CLEAN
    dataset: str | None = None
    strength: int = 3
    rate: float = 20.0
    seconds: float = 60.0
    seed: int = 0
    token: str | None = None


def choose(named: Sequence[str], known: Sequence[str], plan: TrafficPlan) -> tuple[list[str], list[str]]:
    """The models to send to, of those that are up at `plan.url`, and what is said of the rest.

    named: models that must be up; without any, all of `known`, those in params.yaml, that are. Raises LooplineError where a named
    model is not up, or none of the known ones is.
    """
    up = prometheus_api.served(plan.url, plan.token)
    there = f"at {plan.url} {'there is only ' + ', '.join(up) if up else 'no model is up'}"
    if missing := [name for name in named if name not in up]:
        raise LooplineError(f"not up: {', '.join(missing)}; {there}")
    if named:
        return list(named), []
    chosen = [name for name in known if name in up]
    if not chosen:
        raise LooplineError(f"not up: {', '.join(known)}; {there}")
    left_out = [f"{name} is not up at {plan.url}" for name in known if name not in up]
    left_out += [f"{name} is up, but not in params.yaml" for name in up if name not in known]
    return chosen, left_out


def failures(counts: Counter[str]) -> str:
    """What went wrong, in words; empty where every request that was sent got the answer 200."""
    wrong = {status: count for status, count in counts.items() if status not in ("200", NOT_SENT) and count}
    if not wrong:
        return "" if counts["200"] else "no request was sent"
    listed = ", ".join(f"{status}: {count:,}" for status, count in sorted(wrong.items()))
    sent = counts.total() - counts[NOT_SENT]
    return f"{sum(wrong.values()):,} of {sent:,} requests did not get the answer 200 ({listed})"


def pools(
    named: Sequence[str], others: Sequence[str], plan: TrafficPlan
) -> tuple[dict[str, list[bytes | str]], list[str]]:
    """What may be sent to each of these models, and of `others` to those that the profile fits; with what was said of the rest.

    Raises LooplineError where a model of `named` is not fit for the profile, or none is.
    """
    found = {name: samples(name, plan) for name in named}
    left_out = []
    for name in others:
        try:
            found[name] = samples(name, plan)
        except LooplineError as error:
            left_out.append(str(error))
    if not found:
        raise LooplineError("\n".join(left_out))
    return found, left_out


def samples(name: str, plan: TrafficPlan) -> list[bytes | str]:
    """What may be sent to the model `name`: its test split, changed as the profile says. Raises LooplineError."""
    from loopline.data import manifest

    if plan.dataset and plan.profile != OTHER:
        raise LooplineError(f"a data set is sent by the profile {OTHER} alone, not by {plan.profile}")
    if plan.profile == OTHER:
        return _foreign(name, plan)
    split = manifest.load_split(Path("data") / name / "manifest.parquet", "test")
    rng = np.random.default_rng(plan.seed)
    given: list[Any] = list(split.inputs)
    if plan.profile == CLEAN:
        return given
    if plan.profile == PRIOR:
        if isinstance(split.targets, list):
            raise LooplineError(f"{name} detects objects: a profile of its classes is not there; try another")
        return [one for one, target in zip(given, split.targets, strict=True) if target < 2]
    texts = isinstance(given[0], str)
    profile = plan.profile if plan.profile != NOISY else "typos" if texts else "noise"
    known = shifts.names(texts=texts)
    if profile not in known:
        there = ", ".join((CLEAN, PRIOR, OTHER, NOISY, *known))
        raise LooplineError(f"no profile {profile!r} for {name}: there are {there}")
    return [shifts.shifted(one, profile, plan.strength, rng) for one in given]


def _foreign(name: str, plan: TrafficPlan) -> list[bytes | str]:
    """Of another data set, as they are: the server is to resize them."""
    from loopline import settings

    model = settings.model(name)[1]
    try:
        dataset = plan.dataset or other_domain.of(model.dataset)
        found = other_domain.read(dataset, model.task, MOST_FOREIGN, plan.seed)
    except LooplineError as error:
        raise LooplineError(f"{name}: {error}") from error
    return [one.text or one.image or b"" for one in found]


def requests(pools: dict[str, list[bytes | str]], seed: int) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Endless: path, body and headers, from all models in turn, samples at random."""
    rng = np.random.default_rng(seed)
    while True:
        for name, pool in pools.items():
            sample = pool[int(rng.integers(len(pool)))]
            if isinstance(sample, str):
                yield f"/predict/{name}", json.dumps({"text": sample}).encode(), {"Content-Type": "application/json"}
            else:
                yield f"/predict/{name}", sample, {"Content-Type": "application/octet-stream"}


def send(pools: dict[str, list[bytes | str]], plan: TrafficPlan, *, progress: bool = True) -> Counter[str]:
    """Send for `plan.seconds`; how many answers there were of each status. A server that is slow does not slow the schedule."""
    from tqdm import tqdm

    host = urllib.parse.urlsplit(plan.url).netloc
    own = authorization(plan.token)
    todo: queue.Queue[tuple[str, bytes, dict[str, str]] | None] = queue.Queue(maxsize=CLIENTS * 4)
    counts: Counter[str] = Counter()

    def work() -> None:
        connection = http.client.HTTPConnection(host, timeout=TIMEOUT)
        while (asked := todo.get()) is not None:
            path, body, headers = asked
            try:
                # A few samples come again and again: what is sticky in a rollout is the request, not its content.
                connection.request("POST", path, body, headers | own | {"X-Request-Id": str(uuid.uuid4())})
                answer = connection.getresponse()
                answer.read()
                counts[str(answer.status)] += 1
            except (OSError, http.client.HTTPException):
                counts[NO_ANSWER] += 1
                connection.close()
        connection.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    start, number = time.monotonic(), int(plan.rate * plan.seconds)
    source = requests(pools, plan.seed)
    try:
        for count in tqdm(range(number), unit="request", disable=None if progress else True, desc=plan.profile):
            time.sleep(max(0.0, start + count / plan.rate - time.monotonic()))
            try:
                todo.put_nowait(next(source))
            except queue.Full:
                counts[NOT_SENT] += 1
    except KeyboardInterrupt:
        pass
    for _ in threads:
        todo.put(None)
    for thread in threads:
        thread.join()
    return counts
