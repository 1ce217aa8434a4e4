"""A real Prometheus for tests, and targets for it to scrape."""

import copy
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from contextlib import ExitStack, suppress

import pytest
import yaml
from answering import Server

needed = pytest.mark.skipif(
    not (shutil.which("prometheus") or os.environ.get("LOOPLINE_REQUIRE_PROMETHEUS")),
    reason="no prometheus on this machine: apt-get install prometheus prometheus-alertmanager",
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def free_ports(count):
    """The first of `count` consecutive ports that are free."""
    while True:
        first = free_port()
        with ExitStack() as probes, suppress(OSError):
            for number in range(count):
                probes.enter_context(socket.create_server(("127.0.0.1", first + number)))
            return first


class Target(Server):
    """An exporter whose metrics a test sets in `text`."""

    def __init__(self):
        self.text = ""
        kind = {"Content-Type": "text/plain; version=0.0.4"}
        super().__init__(lambda *_: (200, self.text.encode(), kind))


class Hook(Server):
    """A webhook that keeps the alerts that it receives."""

    def __init__(self):
        self.alerts = []

        def keep(*request):
            self.alerts += json.loads(request[-1])["alerts"]
            return 200, b""

        super().__init__(keep)


def query(url, expression, moment=None):
    """The result of an instant query, now or at `moment` (Unix time): [(labels, value), ...]."""
    arguments = {"query": expression} | ({} if moment is None else {"time": moment})
    address = f"{url}/api/v1/query?" + urllib.parse.urlencode(arguments)
    with urllib.request.urlopen(address, timeout=10) as answer:
        rows = json.load(answer)["data"]["result"]
    return [(row["metric"], float(row["value"][1])) for row in rows]


def eventually(ask, seconds=60.0):
    """Call `ask` until its result is true, and return that. A refused connection counts as false, since a server may start late."""
    end = time.monotonic() + seconds
    while True:
        with suppress(OSError, http.client.HTTPException):
            if answer := ask():
                return answer
        assert time.monotonic() < end, f"the condition did not come true within {seconds:g} s"
        time.sleep(0.2)


def quick(rules):
    """The rules with an evaluation interval of half a second."""
    return re.sub(r"interval: \w+", "interval: 500ms", rules)


class Prometheus:
    """A Prometheus that scrapes `targets` and evaluates `rules`. every: of both; without an answer in this time a series is absent."""

    moment: float | None = None

    def __init__(self, folder, targets, rules, every="500ms"):
        port = free_port()
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "loopline", "static_configs": [{"targets": targets}]}],
        }
        (folder / "rules.yml").write_text(rules)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        self.log = (folder / "prometheus.log").open("w")
        self.process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=self.log, stderr=self.log
        )
        self.url = f"http://127.0.0.1:{port}"
        eventually(self._ready)

    def _ready(self):
        assert self.process.poll() is None, "prometheus ended"
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1):
                return True
        except (OSError, http.client.HTTPException):  # see processes.wait
            return False

    def query(self, expression):
        return query(self.url, expression, self.moment)

    def frozen(self, recording):
        """This server at the next evaluation of `recording`, so that all queries see the samples of one evaluation.

        A rule group writes all its recordings with one time stamp, in order: name the last one that matters.
        """
        view, now = copy.copy(self), time.time()
        [(_, view.moment), *_] = eventually(lambda: self.query(f"max(timestamp({recording})) > {now}"))
        return view

    def close(self):
        self.process.terminate()
        self.process.wait(20)
        self.log.close()
