"""The gateway: which lane gets a request, which paths are public, and what a dead server costs."""

import os
import signal
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import front
import prometheus
import pytest
import requests

from loopline.errors import LooplineError
from loopline.fleet import members
from loopline.fleet.gateway import BASELINE, CHALLENGER, Gateway, socket_path, write
from loopline.rollout import evidence

pytestmark = [front.needed, prometheus.needed]


@pytest.fixture
def lanes(up, place):
    """The gateway with one server in each of the three lanes; the first of the ports."""
    fleet = members.read()
    _, challenger = members.keep(place / "challenger")
    on_trial, baseline = (
        members.Lane({"classifier": str(path)}, 1) for path in (challenger.folder, place / "models/classifier/bundle")
    )
    members.apply(replace(fleet, challenger=on_trial, baseline=baseline))
    return up


def test_shares_change_without_a_lost_request_and_are_as_requested(lanes, versions, gateway):
    with front.sending(lanes) as sender:
        for percent in (0, 5, 50, 0):
            gateway.share("classifier", percent)
            mark = sender.settled()
            sender.more(1000)
            counts = sender.since(mark)
            got = counts[versions[1]] / counts.total()
            assert got == pytest.approx(percent / 100, abs=0.06 if percent else 0)


def test_the_baseline_gets_as_much_as_the_challenger(lanes, gateway):
    gateway.share("classifier", 25)
    with front.sending(lanes) as sender:
        sender.more(2000)
    prometheus.eventually(lambda: Path(".loopline/up/gateway.log").read_text().count("lane ") > 500)
    counts = Counter(answer.lane for answer in evidence.GatewayLog(Path(".loopline/up/gateway.log")).read())
    assert counts[CHALLENGER] / len(sender.answers) == pytest.approx(0.25, abs=0.05)
    assert counts[BASELINE] / len(sender.answers) == pytest.approx(0.25, abs=0.05)


def version(port, headers, body, path="/predict/classifier"):
    answer = requests.post(f"http://127.0.0.1:{port}{path}", body, headers=headers, timeout=10)
    assert answer.status_code == 200
    return answer.json()["version"]


@pytest.mark.parametrize("key", ["X-Client-Id", "X-Request-Id", None])
def test_requests_with_the_same_key_go_to_the_same_version(lanes, gateway, key):
    gateway.share("classifier", 50)
    images = [front.brightness.png(value) for value in range(0, 200, 5)]
    versions = set()
    for number, body in enumerate(images):
        headers = {key: f"k{number}"} if key else {}
        bodies = [body] * 3 if key != "X-Client-Id" else images[:3]  # a client is sticky whatever it sends
        [answered] = {version(lanes, headers, content) for content in bodies}
        versions.add(answered)
    assert len(versions) == 2, "different keys go to both versions"


def test_probes_and_requests_for_a_version_go_to_the_champion(lanes, gateway, versions):
    gateway.share("classifier", 50)
    for number in range(30):
        body = front.brightness.png(number * 5)
        assert version(lanes, {"X-Loopline-Probe": "1", "X-Request-Id": str(number)}, body) == versions[0]
        path = f"http://127.0.0.1:{lanes}/v2/models/classifier/versions/{versions[0]}"
        assert requests.get(path, headers={"X-Request-Id": str(number)}, timeout=10).status_code == 200


def test_only_predictions_are_shared(lanes, gateway):
    """Labels, metadata and polls are the champion's, so they are not in the log that the judge reads."""
    gateway.share("classifier", 50)
    url = f"http://127.0.0.1:{lanes}/v2/models/classifier"
    keys = [{"X-Request-Id": str(number)} for number in range(20)]
    for key in keys:
        for path in ("", "/ready", "/infer/other", "/feedback"):
            requests.get(url + path, headers=key, timeout=10)
        requests.get(f"http://127.0.0.1:{lanes}/predict/classifier/other", headers=key, timeout=10)
    for key in keys:
        requests.post(url + "/infer", b"{}", headers=key, timeout=10)
        requests.post(f"http://127.0.0.1:{lanes}/predict/classifier/", b"", headers=key, timeout=10)
    log = Path(".loopline/up/gateway.log")
    prometheus.eventually(lambda: log.read_text().count("lane ") >= 40)
    answers = list(evidence.GatewayLog(log).read())
    assert len(answers) == 40
    assert {(answer.model, answer.status) for answer in answers} == {("classifier", 400)}


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/%6detrics", "/metrics?x=1"])
def test_metrics_are_not_public(up, path):
    assert requests.get(f"http://127.0.0.1:{up}{path}", timeout=10).status_code == 404
    assert "haproxy_server_status" in requests.get(f"http://127.0.0.1:{up + 1}/metrics", timeout=10).text


def test_a_lane_whose_server_is_killed_falls_back_to_the_champion_at_once(lanes, gateway, versions):
    gateway.share("classifier", 50)
    with front.sending(lanes) as sender:  # it asserts that every answer is 200
        prometheus.eventually(lambda: versions[1] in sender.since(0))
        for lane in (CHALLENGER, BASELINE):
            os.kill(members.servers(lane)[0].pid, signal.SIGKILL)
        sender.more(50)
        mark = sender.more(200)
        assert set(sender.since(mark)) == {versions[0]}


def test_a_killed_server_is_started_again_by_applying_the_same_fleet(lanes):
    before = members.servers(CHALLENGER)
    os.kill(before[0].pid, signal.SIGKILL)
    prometheus.eventually(lambda: not members.servers(CHALLENGER))
    members.apply(members.read())
    after = members.servers(CHALLENGER)
    assert len(after) == 1
    assert after[0].pid != before[0].pid


def test_prometheus_scrapes_all_lanes(lanes):
    def scraped():
        rows = prometheus.query(f"http://127.0.0.1:{lanes + 4}", 'up{job=~"loopline|gateway"} == 1')
        return {labels.get("lane", labels["job"]) for labels, _ in rows} == {
            "champion",
            BASELINE,
            CHALLENGER,
            "gateway",
        }

    prometheus.eventually(scraped)


def test_a_server_that_does_not_start_changes_nothing(lanes, place, versions):
    (place / "broken").mkdir()
    with front.sending(lanes) as sender:
        with pytest.raises(LooplineError, match="did not get ready"):
            members.apply(members.read().with_champion("classifier", str(place / "broken")))
        mark = sender.more()
        assert set(sender.since(mark)) == {versions[0]}


@pytest.mark.parametrize("percent", [-1, 51])
def test_a_share_that_leaves_no_room_for_the_baseline_is_refused(up, gateway, percent):
    with pytest.raises(ValueError, match="at most 50"):
        gateway.share("classifier", percent)


def test_a_missing_gateway_is_reported(tmp_path):
    with pytest.raises(LooplineError, match="loopline up --gateway"):
        Gateway(tmp_path).ask("show info")
    with pytest.raises(LooplineError, match="no gateway is up"):
        members.read(tmp_path)


@pytest.mark.parametrize("name", ["a b", "a,b", "a)b", "a#b", "a'b", 'a"b', "a[b]", "Löhne"])
def test_haproxy_reads_a_configuration_whatever_the_folder_is_called(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    checked = subprocess.run(["haproxy", "-c", "-f", write(folder, port=1, metrics_port=2)], capture_output=True)
    assert checked.returncode == 0, checked.stderr


def test_haproxy_needs_no_more_files_than_the_system_allows(tmp_path, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    config = write(tmp_path, port=1, metrics_port=2)
    command = ["bash", "-c", f"ulimit -n 4096; exec haproxy -c -f {config}"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert (checked.returncode, "limit" in checked.stderr) == (0, False), checked.stderr
    assert "maxconn 1948" in config.read_text()


def test_a_folder_with_a_path_too_long_for_a_socket_has_its_socket_elsewhere(tmp_path, monkeypatch):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    assert len(str(socket_path(deep))) < 90
    assert str(socket_path(deep)) in write(deep, port=1, metrics_port=2).read_text()
    assert Path(socket_path(deep)).parent.stat().st_mode & 0o077 == 0
    before = socket_path(deep)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # as in another shell
    monkeypatch.setattr("tempfile.tempdir", None)  # otherwise Python keeps the former value
    assert socket_path(deep) == before
