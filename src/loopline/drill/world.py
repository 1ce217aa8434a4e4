"""The world outside: clients that send traffic at a steady rate, and people who label samples.

Samples of the test split only measure accuracy. They are never labelled, so no model is trained on them. People label only
requests that the journal kept, which are a part of all.
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
TIMEOUT = 30.0  # seconds; large because the machine also trains a model, and a slow answer is not a lost one
LABEL_SECONDS = 0.5  # seconds between two batches of labels
BATCH = 1000  # the most labels that a server accepts in one request
KEPT_SECONDS = 10.0  # seconds after which a request that the journal lacks was not kept


@dataclass(frozen=True)
class Seen:
    """A request that was sent.

    at: seconds since the drill began. right: whether the answer was right; None without an answer. version: the one that answered.
    status: of HTTP, 0 without an answer.
    """

    at: float
    drifted: bool
    part: str
    right: bool | None
    version: str
    status: int


@dataclass
class World:
    """Clients and people, active until `close`.

    rate: requests per second. began: time.monotonic() at the drill's start. kept: returns those of the given request ids that the
    journal has. labelled: places in the drifted pool whose samples were labelled.
    """

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
        """Start the threads."""
        self._host = urllib.parse.urlsplit(self.url).netloc
        self._todo: queue.Queue[tuple[int, int, bool] | None] = queue.Queue(maxsize=CLIENTS * 50)
        # Request id -> place in the pool, and time.monotonic() when it was asked.
        self._asked: dict[str, tuple[int, float]] = {}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]
        self._threads += [threading.Thread(target=run, daemon=True) for run in (self._schedule, self._label)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop sending, and wait for requests under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT)

    def accuracy(self, since: float, *, drifted: bool) -> tuple[float, int]:
        """The accuracy on requests since a time whose samples nobody labels, and the number of their answers."""
        requests = [seen for seen in self.seen if seen.at >= since and seen.drifted == drifted and seen.part != "train"]
        answers = [seen.right for seen in requests if seen.right is not None]
        return (sum(answers) / len(answers) if answers else float("nan")), len(answers)

    def lost(self, since: float = 0.0) -> list[Seen]:
        """Requests that were not answered with 200."""
        return [seen for seen in self.seen if seen.at >= since and seen.status != 200]

    def ask(self, samples: Sequence[ScenarioSample]) -> float:
        """Ask these samples now and return the accuracy. The requests are marked as probes, which do not count as traffic."""
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
        while (task := self._todo.get()) is not None:
            number, place, drifted = task
            sample = (self.pools.drifted if drifted else self.pools.clean)[place]
            right, version, status = None, "", 0
            try:
                identity = f"drill-{number}"
                connection.request("POST", f"/predict/{self.model}", sample.body, headers | {"X-Request-Id": identity})
                answer = connection.getresponse()
                status, content = answer.status, json.loads(answer.read())
                if status == 200:
                    right, version = content["predictions"][0]["label"] == sample.label, content["version"]
                    if drifted and sample.part == "train" and self.labelling and place not in self.labelled:
                        self._asked[identity] = place, time.monotonic()
            except (OSError, ValueError, http.client.HTTPException):
                connection.close()
            self.seen.append(Seen(time.monotonic() - self.began, drifted, sample.part, right, version, status))
        connection.close()

    def _label(self) -> None:
        """Send labels in batches, as people would; a batch that is not accepted is sent again."""
        connection, truths = http.client.HTTPConnection(self._host, timeout=TIMEOUT), deque[dict[str, str]]()
        while not self._stop.wait(LABEL_SECONDS):
            truths.extend(self._new_labels())
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

    def _new_labels(self) -> list[dict[str, str]]:
        """Labels of the requests that the journal kept since the last call. A sample that it did not keep may get a label later."""
        asked = dict(self._asked)
        late = time.monotonic() - KEPT_SECONDS
        kept = self.kept(asked)
        for identity in [asked_id for asked_id, (_, at) in asked.items() if asked_id in kept or at < late]:
            del self._asked[identity]
        places = {identity: asked[identity][0] for identity in sorted(kept)}
        new = {place: identity for identity, place in places.items() if place not in self.labelled}
        self.labelled.update(new)
        return [
            {"id": identity, "label": self.pools.drifted[place].label, "source": "people"}
            for place, identity in new.items()
        ]
