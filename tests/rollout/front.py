"""Helpers for tests with a real gateway: a steady sender that records every answer, a controller, the command line."""

import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from random import Random

import brightness
import prometheus
import pytest

from loopline.rollout import controller as rollout

needed = pytest.mark.skipif(
    not (shutil.which("haproxy") or os.environ.get("LOOPLINE_REQUIRE_HAPROXY")),
    reason="no haproxy on this machine: apt-get install haproxy",
)


class Sender:
    """Sends steady requests through the gateway, each with its own id. answers: (status, version, id) of each."""

    def __init__(self, port, clients=4, pause=0.005, values=range(256), token=None):
        # A minute for an answer: a pause of the machine is no lost request.
        self.headers = {"X-Request-Timeout-Ms": "60000"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self.answers, self.stop = [], threading.Event()
        self.images = [brightness.png(value) for value in values]
        self.threads = [threading.Thread(target=self._send, args=(port, n, pause)) for n in range(clients)]
        for thread in self.threads:
            thread.start()

    def _send(self, port, number, pause):
        connection, count = http.client.HTTPConnection("127.0.0.1", port, timeout=30), 0
        # A random order: otherwise one lane could get the bright images and the other the dark ones.
        random = Random(number)
        while not self.stop.is_set():
            count += 1
            identity = f"{number}-{count}"
            try:
                headers = self.headers | {"X-Request-Id": identity}
                connection.request("POST", "/predict/classifier", random.choice(self.images), headers)
                answer = connection.getresponse()
                content = answer.read()
                version = json.loads(content).get("version")
                assert answer.headers["X-Request-Id"] == identity
                self.answers.append((answer.status, version, identity))
            except (OSError, http.client.HTTPException) as error:
                self.answers.append((repr(error), None, identity))
                connection.close()
            time.sleep(pause)
        connection.close()

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        return Counter(status for status, _, _ in self.answers)

    def since(self, mark):
        """Versions in the answers after the first `mark` ones, with their counts."""
        return Counter(version for _, version, _ in self.answers[mark:])

    def more(self, count=200):
        """Wait for `count` more answers, and return how many there were before."""
        mark = len(self.answers)
        prometheus.eventually(lambda: len(self.answers) >= mark + count)
        return mark

    def settled(self):
        """Wait until each client has an answer to a request that it sends from now on, and return how many answers there are."""
        before = self._clients()
        prometheus.eventually(lambda: all((self._clients() - before)[name] > 1 for name in before))
        return len(self.answers)

    def _clients(self):
        return Counter(identity.partition("-")[0] for _, _, identity in self.answers[:])


@contextmanager
def sending(port, **options):
    sender = Sender(port, **options)
    try:
        yield sender
    finally:
        counts = sender.end()
    assert set(counts) == {200}, counts


def controller(inputs=()):
    return rollout.Controller(lambda _, count: list(inputs)[:count])


def loopline(*arguments, **options):
    command = [sys.executable, "-m", "loopline.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
