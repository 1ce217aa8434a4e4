"""The evidence for the judge: log lines, counters, labels, and a replay on two real servers."""

import time
from dataclasses import replace

import brightness
import bundles
import journals
import prometheus
import pytest
from servers import Process

from loopline.errors import LooplineError
from loopline.fleet.gateway import BASELINE, CHALLENGER
from loopline.journal.collector import Collector
from loopline.rollout import controller, evidence
from loopline.rollout.evidence import GatewayLog, Tally
from loopline.rollout.judge import RolloutPolicy
from loopline.rollout.state import RolloutPlan, RolloutState

LINES = """\
[WARNING]  (1) : Server champion/s1 is UP/READY (leaving forced maintenance).
lane 1000000 classifier challenger s1 200 1500
lane 2000000 classifier challenger s1 500 1500
lane 2000000 classifier baseline s1 200 2500
lane 3000000 classifier challenger k1 200 1500
lane 3000000 classifier challenger s1 -1 -
lane 3000000 classifier challenger <NOSRV> 503 -
lane 3000000 classifier baseline s1 404 100
lane 3000000 other baseline s1 200 100
"""


def test_the_log_is_counted_by_lane_and_step(tmp_path):
    (tmp_path / "log").write_text(LINES)
    tally = Tally("classifier")
    tally.begin(2.0)
    tally.add(GatewayLog(tmp_path / "log").read())
    challenger, baseline = tally.lane(CHALLENGER, {}, (0, 0)), tally.lane(BASELINE, {}, (0, 0))
    assert (challenger.requests, challenger.errors, challenger.step) == (4, 2, 2), "a client that left is not counted"
    assert (baseline.requests, baseline.errors) == (2, 0), "a client's mistake is no error"
    assert tally.stood_in == 2
    assert list(baseline.seconds) == [0.0025, 0.0001]


def test_the_status_of_a_canary_shows_the_counts_of_its_step_and_the_time_left(tmp_path):
    (tmp_path / "gateway.log").write_text(LINES)
    plan = RolloutPlan(hold=600.0, policy=RolloutPolicy(requests=80, slice=2, points=50))
    state = RolloutState(
        id="1",
        model="classifier",
        champion="a",
        challenger="b",
        before="",
        after="",
        stage="canary",
        since=2.0,
        plan=plan,
    )
    lines = controller.progress(state, tmp_path)
    assert lines == [
        "challenger: 2 of 80 requests, 1 of 50 points of latency, 2 errors since the canary began",
        "baseline: 2 of 80 requests, 1 of 50 points of latency, 0 errors since the canary began",
        "0.0 of 10.0 min are left, then it is rolled back",
    ]
    assert "of 10.0 min are left" in controller.progress(replace(state, since=time.time()), tmp_path)[-1]
    assert controller.progress(replace(state, stage="rolled back"), tmp_path) == []
    with pytest.raises(LooplineError, match=r"the gateway's log cannot be read: .*gateway\.log"):
        controller.progress(state, tmp_path / "nowhere")


def test_an_incomplete_line_is_left_for_the_next_read(tmp_path):
    path = tmp_path / "log"
    path.write_text("lane 1000000 m challenger s1 200 1500\nlane 2000000 m chall")
    log = GatewayLog(path)
    assert len(list(log.read())) == 1
    with path.open("a") as file:
        file.write("enger s1 200 7\n")
    [answer] = log.read()
    assert answer.seconds == 7e-6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")
    folders = {"same": bundles.classifier(root / "same", code="d" * 64).folder}
    folders["champion"] = bundles.classifier(root / "champion").folder
    folders["other"] = bundles.classifier(root / "other", threshold=60.0).folder
    return folders | {
        "nan": bundles.classifier(root / "nan", threshold=float("nan")).folder,
        "text": bundles.text(root / "text").folder,
    }


@pytest.fixture(scope="module")
def servers(folders):
    servers = {name: Process(folder, "--port", 0) for name, folder in folders.items()}
    yield servers
    assert {process.stop() for process in servers.values()} == {0}


INPUTS = [brightness.png(value) for value in range(0, 250, 10)]


def replay(servers, name, inputs=INPUTS):
    return evidence.replay(inputs, "classifier", servers["champion"].url, servers[name].url)


def test_a_replay_compares_two_servers_and_does_not_count_as_traffic(servers):
    same = replay(servers, "same")
    assert (same.inputs, same.agreed, same.failed, same.invalid, same.expected) == (25, 25, 0, 0, 0.0)
    assert len(same.ratios) == 25
    other = replay(servers, "other")
    assert other.agreed == 18
    assert other.expected == pytest.approx(7 / 25)
    rows = evidence.series(servers["champion"].url)
    answered = [(labels, count) for name, labels, count in rows if name == "loopline_requests_total"]
    routes = {labels["route"]: count for labels, count in answered if labels["code"] == "200"}
    assert routes["probe"] == 50
    assert routes["predict"] == 0


def test_an_input_that_the_champion_refuses_is_not_counted(servers):
    assert replay(servers, "same", [b"no image", INPUTS[0]]).inputs == 1


def test_a_challenger_that_does_not_answer_fails(servers):
    shadow = evidence.replay(INPUTS[:3], "classifier", servers["champion"].url, servers["text"].url)
    assert (shadow.inputs, shadow.failed) == (3, 3)


def test_an_answer_with_nan_is_seen_in_the_replay_and_in_the_counters(servers):
    import requests

    assert replay(servers, "nan", INPUTS[:3]).invalid == 3
    for image in INPUTS[:3]:
        assert requests.post(servers["nan"].url + "/predict/classifier", image, timeout=10).status_code == 200
    prometheus.eventually(lambda: evidence.classes(evidence.series(servers["nan"].url), "classifier")[1] == 3)


def test_texts_are_replayed_too(servers):
    url = servers["text"].url
    assert evidence.replay(["good fine", "bad poor"], "text", url, url).agreed == 2


def test_classes_are_counted_from_traffic(servers):
    import requests

    for image in INPUTS:
        assert requests.post(servers["same"].url + "/predict/classifier", image, timeout=10).status_code == 200
    prometheus.eventually(
        lambda: sum(evidence.classes(evidence.series(servers["same"].url), "classifier")[0].values()) == 25
    )


def test_a_server_with_a_token_gives_its_counters_only_with_it(folders):
    server = Process(folders["same"], "--port", 0, env={"LOOPLINE_TOKEN": "s3cret"})
    try:
        with pytest.raises(LooplineError, match="401"):
            evidence.series(server.url)
        assert evidence.classes(evidence.series(server.url, "s3cret"), "classifier")[0]
    finally:
        server.stop()


def test_a_server_that_does_not_answer_is_reported():
    with pytest.raises(LooplineError, match="does not answer"):
        evidence.series(f"http://127.0.0.1:{prometheus.free_port()}")


def test_the_latest_answered_inputs_that_the_journal_kept_are_taken(tmp_path):
    now = time.time()
    lines = [journals.text(name, name, time=now + place) for place, name in enumerate("abcd")]
    journals.write(tmp_path, *lines, journals.text("e", None, time=now + 9), journals.text("f", "f", status=400))
    collector = Collector(tmp_path)
    collector.round()
    assert evidence.recent(tmp_path, "text", 3) == ["d", "c"]
    collector.close()


def test_without_a_journal_the_error_says_what_to_do(tmp_path):
    with pytest.raises(LooplineError, match="loopline journal"):
        evidence.recent(tmp_path, "text", 2)


@prometheus.needed
def test_labels_are_counted_by_version_since_the_rollout_began(tmp_path):
    def exported(*rows):
        return "".join(
            f'loopline_labelled_{name}_total{{model="m",version="{version}"}} {value}\n'
            for name, version, value in rows
        )

    target = prometheus.Target()
    target.text = exported(("rows", "a", 1000), ("quality", "a", 990))
    server = prometheus.Prometheus(tmp_path, [target.address], "groups: []")
    prometheus.eventually(lambda: server.query("loopline_labelled_rows_total"))
    began = time.time()
    target.text = exported(("rows", "a", 1010), ("quality", "a", 999), ("rows", "b", 20), ("quality", "b", 11))
    prometheus.eventually(lambda: evidence.labels(server.url, "m", "a", began) == (10, 9))
    prometheus.eventually(lambda: evidence.labels(server.url, "m", "b", began) == (20, 11))
    assert evidence.labels(server.url, "m", "c", began) == (0, 0)
    server.close()
    target.close()
    assert evidence.labels(server.url, "m", "a", began) == (0, 0)
