"""The world outside: traffic, people who know what is right, and what they get answered.

Traffic goes on all the time, at a steady rate. Samples of the test split are only measured: nobody labels them, so that no model is
trained on them. People label what the journal kept, and it keeps a part of what is asked.
"""

from __future__ import annotations

import http.client
import itertools
import json
import queue
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from loopline.drill.scenario import Pools, ScenarioSample

CLIENTS = 6
TIMEOUT = 30.0  # seconds; a machine that trains a model beside is slow, and slow is not lost
LABEL_SECONDS = 0.5  # between two batches of labels
BATCH = 1000  # labels that a server takes at once
KEPT_SECONDS = 10.0  # in which the journal has a request that it keeps


@dataclass(frozen=True)
class Seen:
    """One request. right: was the answer? None without one. version: that answered. at: seconds since the drill began."""

    at: float
    drifted: bool
    part: str
    right: bool | None
    version: str
    status: int


@dataclass
class World:
    """Sends, measures and labels until it is closed. began: time.monotonic() of the drill's begin. kept: ids that the journal has."""

    url: str
    model: str
    pools: Pools
    rate: float
    began: float
    kept: Callable[[Collection[str]], set[str]]
    drifted: bool = False
    labelling: bool = False
    seen: list[Seen] = field(default_factory=list)
    labelled: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Start."""
        self._host = urllib.parse.urlsplit(self.url).netloc
        self._todo: queue.Queue[tuple[int, int, bool] | None] = queue.Queue(maxsize=CLIENTS * 50)
        self._asked: dict[str, tuple[int, float]] = {}  # id -> place in the pool, and when
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]
        self._threads += [threading.Thread(target=run, daemon=True) for run in (self._schedule, self._label)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop sending, and wait for what is under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT)

    def accuracy(self, since: float, *, drifted: bool) -> tuple[float, int]:
        """On the samples that nobody labels, of the requests since a time: share, and of how many."""
        found = [one.right for one in self.seen if one.at >= since and one.drifted == drifted and one.part != "train"]
        known = [right for right in found if right is not None]
        return (sum(known) / len(known) if known else float("nan")), len(known)

    def lost(self, since: float = 0.0) -> list[Seen]:
        """Requests that were not answered with 200."""
        return [one for one in self.seen if one.at >= since and one.status != 200]

    def ask(self, samples: Sequence[ScenarioSample]) -> float:
        """The accuracy on these, asked now, as the sentinel asks: nothing of it is counted as traffic."""
        connection = http.client.HTTPConnection(self._host, timeout=TIMEOUT)
        headers = {"Content-Type": self.pools.content_type, "X-Loopline-Probe": "1"}
        right = 0
        for sample in samples:
            connection.request("POST", f"/predict/{self.model}", sample.body, headers)
            right += json.loads(connection.getresponse().read())["predictions"][0]["label"] == sample.label
        connection.close()
        return right / len(samples)

    def _schedule(self) -> None:
        rng, start = np.random.default_rng(1), time.monotonic()
        order: dict[bool, list[int]] = {False: [], True: []}
        for number in itertools.count():
            if self._stop.wait(max(0.0, start + number / self.rate - time.monotonic())):
                break
            drifted = self.drifted
            pool = self.pools.drifted if drifted else self.pools.clean
            if not order[drifted]:
                order[drifted] = rng.permutation(len(pool)).tolist()
            self._todo.put((number, order[drifted].pop(), drifted))
        for _ in range(CLIENTS):
            self._todo.put(None)

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(self._host, timeout=TIMEOUT)
        headers = {"Content-Type": self.pools.content_type, "X-Request-Timeout-Ms": f"{TIMEOUT * 1000:.0f}"}
        while (todo := self._todo.get()) is not None:
            number, place, drifted = todo
            sample = (self.pools.drifted if drifted else self.pools.clean)[place]
            right, version, status = None, "", 0
            try:
                identity = f"drill-{number}"
                connection.request("POST", f"/predict/{self.model}", sample.body, headers | {"X-Request-Id": identity})
                answer = connection.getresponse()
                status, said = answer.status, json.loads(answer.read())
                if status == 200:
                    right, version = said["predictions"][0]["label"] == sample.label, said["version"]
                    if drifted and sample.part == "train" and self.labelling and place not in self.labelled:
                        self._asked[identity] = place, time.monotonic()
            except (OSError, ValueError, http.client.HTTPException):
                connection.close()
            self.seen.append(Seen(time.monotonic() - self.began, drifted, sample.part, right, version, status))
        connection.close()

    def _label(self) -> None:
        """People send what they know, a batch at a time; what does not arrive is sent again."""
        connection, truths = http.client.HTTPConnection(self._host, timeout=TIMEOUT), deque[dict[str, str]]()
        while not self._stop.wait(LABEL_SECONDS):
            truths.extend(self._known())
            batch = [truths.popleft() for _ in range(min(len(truths), BATCH))]
            try:
                if batch:
                    connection.request("POST", f"/v2/models/{self.model}/feedback", json.dumps(batch))
                    answer = connection.getresponse()
                    answer.read()
                    if answer.status != 202:
                        truths.extendleft(reversed(batch))
            except (OSError, http.client.HTTPException):
                truths.extendleft(reversed(batch))
                connection.close()
        connection.close()

    def _known(self) -> list[dict[str, str]]:
        """Labels of what the journal kept since the last look. What it did not keep may be labelled when it is asked again."""
        asked = dict(self._asked)
        late = time.monotonic() - KEPT_SECONDS
        kept = self.kept(asked)
        for identity in [one for one, (_, at) in asked.items() if one in kept or at < late]:
            del self._asked[identity]
        places = {identity: asked[identity][0] for identity in sorted(kept)}
        new = {place: identity for identity, place in places.items() if place not in self.labelled}
        self.labelled.update(new)
        return [
            {"id": identity, "label": self.pools.drifted[place].label, "source": "people"}
            for place, identity in new.items()
        ]
