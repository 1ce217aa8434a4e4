"""Server processes on free ports of the loopback."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import requests
from prometheus_client.parser import text_string_to_metric_families

from loopline.server.metrics import PREFIX


class Process:
    """A ready `loopline serve`; `log` holds its log lines."""

    def __init__(self, *arguments, env=None, command=(sys.executable, "-m", "loopline.cli", "serve")):
        # A minute for an answer, because the machine may run other tests at the same time.
        own = ["--grace", "0.1", "--timeout-ms", "60000"]
        command = [*command, *own, *map(str, arguments)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | (env or {}))
        self.log = []
        for line in self.process.stderr:
            self.log.append(json.loads(line) if line.startswith("{") else {"message": line})
            if self.log[-1]["message"] == "ready":
                break
        else:
            self.process.stderr.close()
            raise AssertionError(f"the server ended with {self.process.wait()}: {self.log}")
        self.url = self.log[-1]["address"]
        self.host, self.port = self.url.removeprefix("http://").split(":")
        self.port = int(self.port)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        with self.process.stderr:
            for line in self.process.stderr:
                self.log.append(json.loads(line) if line.startswith("{") else {"message": line})

    def stop(self):
        """Stop the server with SIGTERM and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(120)
        self.reader.join(60)
        return code


def until(true, seconds=120.0):
    """Wait until `true()` is true, at most that many seconds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.01)


def samples(server):
    """(name, labels...) -> value of all exported metrics."""
    text = requests.get(server.url + "/metrics", timeout=60).text
    return {
        (s.name, *sorted(s.labels.items())): s.value for f in text_string_to_metric_families(text) for s in f.samples
    }


def total(values, name, **labels):
    """The sum of a metric over all samples with these labels."""
    return sum(
        value for key, value in values.items() if key[0] == PREFIX + name and labels.items() <= dict(key[1:]).items()
    )
