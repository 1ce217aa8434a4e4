"""`up`, `traffic`, `down`: from a request to an alert and back, with the real programs."""

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import brightness
import bundles
import prometheus
import pytest

from loopline.lib import locks, processes
from loopline.release import decisions
from loopline.simulate import traffic

pytestmark = prometheus.needed
WINDOW, SCRAPE = "24s", 0.5


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A repository of one model: 256 images of each brightness, and a bundle that tells bright from dark."""
    monkeypatch.chdir(tmp_path)
    brightness.write_manifest(tmp_path / "data/classifier/manifest.parquet")
    (tmp_path / "models/classifier").mkdir(parents=True)
    bundles.classifier(tmp_path / "models/classifier/bundle")
    return tmp_path


def loopline(*arguments, **options):
    command = [sys.executable, "-m", "loopline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def ports(first):
    """Options for six consecutive ports, of which four have an option."""
    return [
        "--port",
        first,
        "--sentinel-port",
        first + 3,
        "--prometheus-port",
        first + 4,
        "--alertmanager-port",
        first + 5,
    ]


@pytest.fixture
def started(folder):
    """started(options) starts a stack and returns its first port; down at the end of the test."""

    def start(*more):
        first = prometheus.free_ports(6)
        done = loopline("up", "--window", WINDOW, "--scrape", SCRAPE, "--sentinel", 1, *ports(first), *more)
        assert done.returncode == 0, done.stderr
        return first

    yield start
    assert loopline("down").returncode == 0


def firing(first):
    """Names of the drift alerts that fire."""
    rows = prometheus.query(
        f"http://127.0.0.1:{first + 4}", 'ALERTS{alertstate="firing",alertname=~"Drift.*|Retrain.*"}'
    )
    return {labels["alertname"] for labels, _ in rows}


@contextmanager
def flowing(first, profile):
    """Send traffic of a profile until the block ends: a busy machine needs longer."""
    plan = traffic.TrafficPlan(url=f"http://127.0.0.1:{first}", profile=profile, rate=30, seconds=2)
    rows = {"classifier": traffic.samples("classifier", plan)}
    enough = threading.Event()

    def send():
        answers = Counter()
        for seed in itertools.takewhile(lambda _: not enough.is_set(), itertools.count()):
            answers.update(traffic.send(rows, replace(plan, seed=seed), progress=False))
        return answers

    with ThreadPoolExecutor(1) as thread:
        answers = thread.submit(send)
        try:
            yield
        finally:
            enough.set()
    assert answers.result()["200"] > 0.5 * answers.result().total(), answers.result()


def test_clean_traffic_is_quiet_a_shift_raises_the_notice_and_its_end_clears_it(started, folder):
    received = prometheus.Hook()
    first = started("--replicas", 2, "--webhook", received.url)
    url = f"http://127.0.0.1:{first + 4}"
    with flowing(first, "clean"):
        full = f"sum(increase(loopline_signal_rows_total{{signal='brightness'}}[{WINDOW}])) > 300"
        prometheus.eventually(lambda: prometheus.query(url, full))
        score = prometheus.eventually(lambda: prometheus.query(url, "loopline:drift_score"))
        assert score[0][1] < 1
        assert firing(first) == set()

    with flowing(first, "dark"):
        notices = prometheus.eventually(
            lambda: [alert for alert in received.alerts if alert["labels"]["alertname"] == "DriftNotice"]
        )
    alert = notices[0]
    assert "Moved most: brightness (score" in alert["annotations"]["description"]
    assert (Path(__file__).parents[2] / alert["annotations"]["runbook_url"]).exists()

    with flowing(first, "clean"):
        prometheus.eventually(lambda: firing(first) == set())
        prometheus.eventually(lambda: [alert for alert in received.alerts if alert["status"] == "resolved"])
    received.close()

    checks = prometheus.query(url, "sum by (result) (loopline_sentinel_checks_total)")
    assert {labels["result"] for labels, count in checks if count} == {"same"}

    def total(metric, **labels):
        chosen = ",".join(f'{name}="{value}"' for name, value in labels.items())
        return sum(value for _, value in prometheus.query(url, f"sum({metric}{{{chosen}}})"))

    def counted():
        return total("loopline_signal_rows_total", signal="brightness")

    # After a pause of the machine some rows are never counted, so the sums alone could hide golden inputs.
    probes = total("loopline_requests_total", route="probe")
    prometheus.eventually(lambda: total("loopline_requests_total", route="probe") >= probes + 4)
    rows, probes = counted(), total("loopline_requests_total", route="probe")
    prometheus.eventually(lambda: total("loopline_requests_total", route="probe") >= probes + 10)
    assert counted() == rows, "golden inputs are not counted as traffic"
    predictions = total("loopline_requests_total", route="predict")
    assert predictions / 2 < rows <= predictions


def test_an_alert_goes_from_alertmanager_to_the_retrainer_with_the_token_of_this_start(started, folder):
    """The alert is invented, so the retrainer finds no such version here and waits."""
    subprocess.run(["git", "init", "--quiet"], check=True, env=os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null"})
    (folder / "params.yaml").write_text(brightness.params())
    policy = Path(__file__).parents[2] / "monitoring/retraining.yaml"
    port = prometheus.free_port()
    first = started("--retrainer-port", port, "--policy", policy)
    token = folder / ".loopline/up/retrainer.token"
    assert token.stat().st_mode & 0o777 == 0o600
    scraped = 'up{job="retrainer"} == 1'
    prometheus.eventually(lambda: prometheus.query(f"http://127.0.0.1:{first + 4}", scraped))
    labels = {"alertname": "RetrainCandidate", "severity": "retrain", "model": "classifier", "version": "123abc"}
    body = json.dumps([{"labels": labels}]).encode()
    url = f"http://127.0.0.1:{first + 5}/api/v2/alerts"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200
    log = folder / "decisions/log.jsonl"
    (record,) = prometheus.eventually(lambda: decisions.read(log).records)
    assert record.action == "wait"
    assert "the bundle of classifier in version 123abc is not here" in record.reasons[0]
    assert record.actor == "retrainer"


def test_down_ends_what_up_started_and_nothing_else(started, folder):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    started()
    state = folder / ".loopline/up/state.json"
    running = processes.running(state.parent)
    assert [process.name for process in running] == ["server-1", "sentinel", "alertmanager", "prometheus", "supervisor"]
    again = loopline("up")
    assert again.returncode == 1
    assert "already up" in again.stderr
    # A process that now has the number of an ended one must not be ended.
    rows = json.loads(state.read_text())
    stranger = {"name": "stranger", "pid": other.pid, "created": 1.0, "address": ""}
    state.write_text(json.dumps([*rows, stranger]))
    assert loopline("down").stdout == "ended server-1, sentinel, alertmanager, prometheus, supervisor\n"
    assert not any(processes.alive(process) for process in running)
    assert other.poll() is None
    other.kill()
    other.wait()
    assert loopline("down").stdout == "nothing is up\n"


def test_each_start_has_an_empty_store_unless_the_metrics_are_kept(started, folder):
    """Two bundles in turn in the same folder: Prometheus has figures of the second one only."""

    def served(first):
        query = "count by (version) (present_over_time(loopline_model_info[1h]))"
        return {labels["version"] for labels, _ in prometheus.query(f"http://127.0.0.1:{first + 4}", query)}

    first = started()
    before = prometheus.eventually(lambda: served(first))
    assert loopline("down").returncode == 0
    (folder / "models/classifier/bundle").rename(folder / "old")
    bundles.classifier(folder / "models/classifier/bundle", threshold=100.0)
    first = started()
    after = prometheus.eventually(lambda: served(first))
    assert len(before) == len(after) == 1 and before != after
    assert loopline("down").returncode == 0
    first = started(folder / "old", "--keep-metrics")
    prometheus.eventually(lambda: served(first) == before | after)


def test_a_failed_start_leaves_nothing_running(folder):
    done = loopline("up", "--webhook", "gopher://hole", *ports(prometheus.free_ports(6)))
    assert done.returncode == 1
    assert "alertmanager did not get ready" in done.stderr
    assert "unsupported scheme" in done.stderr
    assert processes.running(folder / ".loopline/up") == []


@pytest.mark.parametrize("place", range(6))
def test_a_port_that_is_taken_is_named_before_anything_starts(folder, place):
    """Debian starts its own Prometheus on 9090, which would answer in place of the stack's."""
    first = prometheus.free_ports(6)
    with socket.create_server(("", first + place)):
        done = loopline("up", "--replicas", 2, *ports(first))
    assert done.returncode == 1
    assert f"loopline: port {first + place} (--" in done.stderr and "another process listens there" in done.stderr
    assert not (folder / ".loopline/up/state.json").exists()


def test_the_second_of_two_simultaneous_starts_is_refused(folder):
    with locks.held(folder / ".loopline/up" / "up.lock"):
        done = loopline("up", *ports(prometheus.free_ports(6)))
    assert (done.returncode, done.stderr) == (1, "loopline: another `loopline up` is running here: wait for it\n")


def test_a_machine_without_prometheus_gets_advice(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    done = loopline("up")
    assert done.returncode == 1
    assert "apt-get install prometheus" in done.stderr
    assert not (folder / ".loopline").exists()


def test_a_repository_without_bundles_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "run `make repro` first" in loopline("up").stderr


def test_an_invalid_window_is_refused(folder):
    done = loopline("up", "--window", "soon")
    assert done.returncode == 1
    assert "'soon' is no duration" in done.stderr


def test_a_process_that_ended_meanwhile_is_no_error(monkeypatch):
    looks = iter([True, True, False])
    monkeypatch.setattr(processes, "alive", lambda _: next(looks))
    monkeypatch.setattr(processes, "END_SECONDS", 0.0)
    processes.end([processes.Process("gone", 1 << 30, 0.0, "")])
