"""The harness of `make bench SUITE=serving` with Loopline's server, and the parts that could measure wrongly."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SENDER = ROOT / "benchmarks/serving/sender.py"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the harness reads /proc and uses epoll")


@pytest.fixture
def harness(monkeypatch):
    """harness(name) -> a module of the harness."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: import_module(f"benchmarks.serving.{name}")


@pytest.mark.skipif(
    not (shutil.which("wrk") or os.environ.get("LOOPLINE_REQUIRE_WRK")),
    reason="wrk makes the load and is not installed",
)
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two cores are needed")
def test_the_harness_measures_the_server_and_writes_its_page(harness, folders, tmp_path):
    main, picture, report = harness("__main__"), harness("picture"), harness("report")
    size = main.Size(
        rounds=1, seconds=1, connections=(1, 4), idle=0.1, open=0.5, flood=0.5, after=0.5, warm=False, whole=False
    )
    bench = main.Bench([folders["classifier"]], size, tmp_path)
    results = json.loads(json.dumps(bench.run(main.KINDS[:1])))

    assert results["absent"] == {}
    closed = results["closed"]
    assert closed["Loopline/classifier/4"][0]["rate"] > 50
    assert closed["Loopline/classifier/4"][0]["failed"] == 0
    opened = closed["Loopline/classifier/open/0.5"][0]
    assert opened["answered"] > 0 and opened["p99"] >= opened["p50"] > 0, "how many fail is the machine's business"
    assert 20 < closed["Loopline/memory"][0] < 500
    assert closed["engine/classifier"][0]["best"] > closed["Loopline/classifier/4"][0]["rate"]

    results |= report.machine()
    page = report.page(results, size.connections)
    assert "| Loopline |" in page
    assert "## Where we lose" in page
    picture.picture(results, tmp_path / "picture.png")
    assert 0 < (tmp_path / "picture.png").stat().st_size < 200_000


def test_a_wrong_answer_is_not_timed(harness, folders, server):
    asks = harness("asks")
    (sample,) = asks.samples([folders["classifier"]])
    ask = asks.v2_binary(sample)
    assert asks.check(server.port, ask, sample) == ""
    other = replace(sample, expected={name: array + 0.1 for name, array in sample.expected.items()})
    assert "differs" in asks.check(server.port, ask, other)
    assert "status 404" in asks.check(server.port, replace(ask, path="/nowhere"), sample)


def test_a_server_that_cannot_start_is_named_with_its_reason(harness, folders, tmp_path):
    main = harness("__main__")
    broken = replace(main.KINDS[0], command=(sys.executable, "-c", "raise SystemExit('no licence')"))
    bench = main.Bench([folders["classifier"]], replace(main.QUICK, rounds=1), tmp_path)
    bench.engines = lambda: None
    bench.run([broken])
    assert "no licence" in bench.absent["Loopline"]


def slow_server(pause):
    """A port that answers one connection's requests after `pause` seconds each."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        client, _ = listener.accept()
        # The sender closes while answers are on their way, at the end of a run; this is not an error.
        with client, listener, suppress(ConnectionError):
            while data := client.recv(65536):
                for _ in range(data.count(b"\r\n\r\n")):
                    time.sleep(pause)
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def test_latency_counts_from_when_a_request_was_due(tmp_path):
    """20 ms an answer on one connection and a request every 10 ms: each waits longer than the one before."""
    request = tmp_path / "request"
    request.write_bytes(b"GET / HTTP/1.1\r\n\r\n")
    order = {
        "port": slow_server(0.02),
        "request": str(request),
        "phases": [[100, 0.5]],
        "connections": 1,
        "patience": 1,
    }
    out = subprocess.run([sys.executable, SENDER, json.dumps(order)], capture_output=True, check=True, text=True)
    (result,) = json.loads(out.stdout)
    assert result["offered"] == pytest.approx(100, rel=0.05)
    assert result["p99"] > 300, "a closed loop would have said 20 ms"
