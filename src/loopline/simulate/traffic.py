"""`loopline traffic`: send test samples, shifted ones or those of another data set to a live server at a steady rate."""

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
from loopline.lib.options import option
from loopline.observability import prometheus_api
from loopline.simulate import other_domain, shifts

CLIENTS = 8
TIMEOUT = 10.0  # seconds
MOST_FOREIGN = 2000  # samples of another data set
NO_ANSWER, NOT_SENT = "no answer", "not sent"  # counted besides the HTTP statuses
CLEAN, PRIOR, NOISY, OTHER = "clean", "prior", "noisy", "other-domain"


@dataclass(frozen=True, kw_only=True)
class TrafficPlan:
    """What to send, and where.

    profile: `prior` sends two classes only, `other-domain` another data set, `noisy` noise in images and typos in texts.
    dataset: None is the companion of the model's own. token: the server's bearer token, if it requires one.
    """

    url: str
    profile: str = option(CLEAN, "kind of traffic: clean, prior, other-domain, noisy, noise, blur, dark, typos, ...")
    dataset: str | None = option(
        None, "data set of the profile other-domain (default: see docs/monitoring.md)", metavar="NAME|FOLDER"
    )
    strength: int = option(3, "strength of a shift", choices=(1, 2, 3))
    rate: float = option(20.0, "requests a second over all models together")
    seconds: float = option(60.0, "duration in seconds")
    seed: int = 0
    token: str | None = None


def choose(named: Sequence[str], configured: Sequence[str], plan: TrafficPlan) -> tuple[list[str], list[str]]:
    """The models to send to, and a message for each model that is left out.

    named: models that must be up at `plan.url`; if empty, all models of params.yaml (`configured`) that are up are chosen. Raises
    LooplineError if a named model is not up, or none of the configured ones is.
    """
    up = prometheus_api.served(plan.url, plan.token)
    others = f"models that are up: {', '.join(up)}" if up else "no model is up"
    if missing := [name for name in named if name not in up]:
        raise LooplineError(f"not up at {plan.url}: {', '.join(missing)}; {others}")
    if named:
        return list(named), []
    chosen = [name for name in configured if name in up]
    if not chosen:
        raise LooplineError(f"not up at {plan.url}: {', '.join(configured)}; {others}")
    left_out = [f"{name} is not up at {plan.url}" for name in configured if name not in up]
    left_out += [f"{name} is up, but not in params.yaml" for name in up if name not in configured]
    return chosen, left_out


def failures(counts: Counter[str]) -> str:
    """A message about failed requests; empty if every request that was sent was answered with 200."""
    wrong = {status: count for status, count in counts.items() if status not in ("200", NOT_SENT) and count}
    if not wrong:
        return "" if counts["200"] else "no request was sent"
    listed = ", ".join(f"{status}: {count:,}" for status, count in sorted(wrong.items()))
    sent = counts.total() - counts[NOT_SENT]
    return f"{sum(wrong.values()):,} of {sent:,} requests did not get the answer 200 ({listed})"


def pools(
    named: Sequence[str], others: Sequence[str], plan: TrafficPlan
) -> tuple[dict[str, list[bytes | str]], list[str]]:
    """The samples for each of the `named` models and each of the `others` that the profile fits, and why the rest is left out.

    Raises LooplineError if the profile does not fit a named model, or fits no model.
    """
    chosen = {name: samples(name, plan) for name in named}
    left_out = []
    for name in others:
        try:
            chosen[name] = samples(name, plan)
        except LooplineError as error:
            left_out.append(str(error))
    if not chosen:
        raise LooplineError("\n".join(left_out))
    return chosen, left_out


def samples(name: str, plan: TrafficPlan) -> list[bytes | str]:
    """The samples for the model `name`: its test split, changed by the profile. Raises LooplineError if that does not fit."""
    from loopline.data import manifest

    if plan.dataset and plan.profile != OTHER:
        raise LooplineError(
            f"only the profile {OTHER} sends another data set: leave --dataset out, or use --profile {OTHER}"
        )
    if plan.profile == OTHER:
        return _foreign(name, plan)
    split = manifest.load_split(Path("data") / name / "manifest.parquet", "test")
    rng = np.random.default_rng(plan.seed)
    inputs: list[Any] = list(split.inputs)
    if plan.profile == CLEAN:
        return inputs
    if plan.profile == PRIOR:
        if isinstance(split.targets, list):
            raise LooplineError(f"{name} detects objects, so the profile {PRIOR} does not fit it: choose another one")
        return [sample for sample, target in zip(inputs, split.targets, strict=True) if target < 2]
    texts = isinstance(inputs[0], str)
    profile = plan.profile if plan.profile != NOISY else "typos" if texts else "noise"
    known_shifts = shifts.names(texts=texts)
    if profile not in known_shifts:
        profiles = ", ".join((CLEAN, PRIOR, OTHER, NOISY, *known_shifts))
        raise LooplineError(f"no profile {profile!r} for {name}: choose one of {profiles}")
    return [shifts.shifted(sample, profile, plan.strength, rng) for sample in inputs]


def _foreign(name: str, plan: TrafficPlan) -> list[bytes | str]:
    """Samples of another data set, unchanged; the server resizes images."""
    from loopline import settings

    model = settings.model(name)[1]
    try:
        dataset = plan.dataset or other_domain.of(model.dataset)
        drawn = other_domain.read(dataset, model.task, MOST_FOREIGN, plan.seed)
    except LooplineError as error:
        raise LooplineError(f"{name}: {error}") from error
    return [sample.text or sample.image or b"" for sample in drawn]


def requests(pools: dict[str, list[bytes | str]], seed: int) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Yield requests without end, as (path, body, headers): the models take turns, and each sample is drawn at random."""
    rng = np.random.default_rng(seed)
    while True:
        for name, pool in pools.items():
            sample = pool[int(rng.integers(len(pool)))]
            if isinstance(sample, str):
                yield f"/predict/{name}", json.dumps({"text": sample}).encode(), {"Content-Type": "application/json"}
            else:
                yield f"/predict/{name}", sample, {"Content-Type": "application/octet-stream"}


def send(pools: dict[str, list[bytes | str]], plan: TrafficPlan, *, progress: bool = True) -> Counter[str]:
    """Send for `plan.seconds` seconds; return the number of answers by status. A slow server does not delay the schedule."""
    from tqdm import tqdm

    host = urllib.parse.urlsplit(plan.url).netloc
    credentials = authorization(plan.token)
    todo: queue.Queue[tuple[str, bytes, dict[str, str]] | None] = queue.Queue(maxsize=CLIENTS * 4)
    counts: Counter[str] = Counter()

    def work() -> None:
        connection = http.client.HTTPConnection(host, timeout=TIMEOUT)
        while (request := todo.get()) is not None:
            path, body, headers = request
            try:
                # Samples repeat, so each request gets its own id: a rollout assigns lanes by the id.
                connection.request("POST", path, body, headers | credentials | {"X-Request-Id": str(uuid.uuid4())})
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
