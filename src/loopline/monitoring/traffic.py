"""`loopline traffic`: replays test samples, or a shift of them, to a live server at a steady rate."""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loopline.errors import LooplineError
from loopline.monitoring import shifts

CLIENTS = 8
TIMEOUT = 10.0
CLEAN, PRIOR = "clean", "prior"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is sent. profile: `clean`, `prior` (two classes only), or a shift. rate: requests a second, over all models."""

    url: str
    profile: str = CLEAN
    strength: int = 3
    rate: float = 20.0
    seconds: float = 60.0
    seed: int = 0


def samples(name: str, plan: Plan) -> list[bytes | str]:
    """What may be sent to the model `name`: its test split, changed as the profile says. Raises LooplineError."""
    from loopline.data import manifest

    split = manifest.load_split(Path("data") / name / "manifest.parquet", "test")
    rng = np.random.default_rng(plan.seed)
    given: list[Any] = list(split.inputs)
    if plan.profile == CLEAN:
        return given
    if plan.profile == PRIOR:
        if isinstance(split.targets, list):
            raise LooplineError(f"{name} detects objects: a profile of its classes is not there; try another")
        return [one for one, target in zip(given, split.targets, strict=True) if target < 2]
    known = shifts.names(texts=isinstance(given[0], str))
    if plan.profile not in known:
        raise LooplineError(f"no profile {plan.profile!r} for {name}: there are {', '.join((CLEAN, PRIOR, *known))}")
    return [shifts.shifted(one, plan.profile, plan.strength, rng) for one in given]


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


def send(pools: dict[str, list[bytes | str]], plan: Plan, *, progress: bool = True) -> Counter[str]:
    """Send for `plan.seconds`; how many answers there were of each status. A server that is slow does not slow the schedule."""
    from tqdm import tqdm

    host = urllib.parse.urlsplit(plan.url).netloc
    todo: queue.Queue[tuple[str, bytes, dict[str, str]] | None] = queue.Queue(maxsize=CLIENTS * 4)
    counts: Counter[str] = Counter()

    def work() -> None:
        connection = http.client.HTTPConnection(host, timeout=TIMEOUT)
        while (asked := todo.get()) is not None:
            path, body, headers = asked
            try:
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                answer.read()
                counts[str(answer.status)] += 1
            except (OSError, http.client.HTTPException):
                counts["no answer"] += 1
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
                counts["not sent"] += 1
    except KeyboardInterrupt:
        pass
    for _ in threads:
        todo.put(None)
    for thread in threads:
        thread.join()
    return counts
