"""`loopline deploy`, `verify`, `rollback` on this machine: real processes behind a real gateway, under load."""

import json
import os
import signal

import bundles
import front
import prometheus
import pytest

from loopline.cli import monitoring
from loopline.deploy import supervisor
from loopline.fleet import members, supervised
from loopline.lib import processes
from loopline.release import decisions
from loopline.rollout.state import FOLDER, read

pytestmark = [front.needed, prometheus.needed]
CANARY = ["--inputs=0", "--steps=50", "--requests=60", "--slice=5", "--points=10", "--slower=20", "--every=0.1"]


def run(*arguments):
    """Run the command; its exit code and its output."""
    running = front.loopline(*arguments)
    output, errors = running.communicate(timeout=240)
    return running.returncode, output + errors


@pytest.fixture
def deployed(place):
    """The first port, and options that give `deploy` its own ports. Ends the stack after the test."""
    first = prometheus.free_ports(7)
    ports = [f"--port={first}", f"--sentinel-port={first + 3}", f"--prometheus-port={first + 4}"]
    ports += [f"--alertmanager-port={first + 5}", f"--journal-port={first + 6}", "--scrape=1", "--sentinel=1"]
    yield first, ports
    front.loopline("down").communicate(timeout=120)
    assert not members.strays(), "nothing stays behind"


def serving():
    return [process for process in processes.running(members.FOLDER) if process.name.startswith("champion-")]


def test_a_second_version_is_deployed_and_taken_back_under_load_and_no_request_is_lost(deployed, place, versions):
    first, ports = deployed
    old, new = versions
    code, text = run("deploy", *ports)
    assert (code, "verified: 1 bundles answer" in text) == (0, True), text
    code, text = run("deploy", *ports)
    assert (code, "nothing to do" in text) == (0, True), text
    code, text = run("rollback", "classifier", *ports)
    assert (code, "nothing was rolled out yet" in text) == (1, True), text
    address = monitoring._address("gateway", "server-1", default="nowhere")
    assert address == f"http://127.0.0.1:{first}", "traffic and `watch` find the gateway"
    with front.sending(first) as sender:
        code, text = run("deploy", "--bundle", "challenger", *CANARY)
        assert (code, "promoted" in text) == (0, True), text
        mark = sender.more()
        assert set(sender.since(mark)) == {new}
        assert run("verify", "--bundle", "challenger")[0] == 0
        code, text = run("verify")
        assert code == 1
        assert f"classifier: bundle {new} is served, {old} is expected" in text
        assert run("rollback", "classifier")[0] == 0
        mark = sender.more()
        assert set(sender.since(mark)) == {old}
        assert run("deploy", "--bundle", "challenger", "--rolling")[0] == 1, "it was rolled back"
        code, text = run("canary", "--bundle", "challenger", *CANARY)
        assert (code, "no canary begins, because this bundle's rollout is over" in text) == (2, True), text
        assert run("deploy", "--bundle", "challenger", "--rolling", "--again")[0] == 0
        mark = sender.more()
        assert set(sender.since(mark)) == {new}
        assert run("rollback")[0] == 0, "the model of the last rollout"
        mark = sender.more()
        assert set(sender.since(mark)) == {old}
    assert [record.action for record in decisions.read().records][-4:] == ["promote", "rollback", "promote", "rollback"]


def test_a_bundle_that_answers_differently_from_its_release_is_taken_back(deployed, place, versions):
    first, ports = deployed
    assert run("deploy", *ports)[0] == 0
    bundles.classifier(place / "wrong", threshold=10.0, code="f" * 64)  # its golden answers belong to another threshold
    with front.sending(first) as sender:
        code, text = run("deploy", "--bundle", "wrong", "--rolling")
        assert code == 1
        assert "classifier: golden input 0: different" in text
        assert "taken back" in text
        mark = sender.more()
        assert set(sender.since(mark)) == {versions[0]}
    assert "golden input 0" in decisions.read().records[-1].reasons[0]
    assert run("verify")[0] == 0


def test_a_first_deployment_that_fails_its_verification_leaves_nothing_up(deployed, place):
    bundles.classifier(place / "wrong", threshold=10.0)
    code, text = run("deploy", "--bundle", "wrong", *deployed[1])
    assert (code, "golden input 0: different" in text) == (1, True), text
    assert processes.running(members.FOLDER) == []
    code, text = run("verify")
    assert (code, "no gateway is up" in text or "not ready" in text) == (1, True), text


def test_a_model_that_was_not_served_joins_the_others(deployed, place):
    _, ports = deployed
    assert run("deploy", *ports)[0] == 0
    bundles.slow(place / "slow")
    code, text = run("deploy", "--bundle", "slow")
    assert (code, "golden.json" in text) == (1, True), "the sentinel could not check it"
    golden = json.loads((place / "challenger/golden.json").read_text())
    (place / "golden.json").write_text(json.dumps(golden))
    bundles._write(
        place / "second",
        bundles.brightness.described(name="second"),
        place / "challenger.onnx",
        golden=place / "golden.json",
    )
    code, text = run("deploy", "--bundle", "models/classifier/bundle", "second")
    assert (code, "second" in text) == (0, True), text
    assert run("verify", "--bundle", "models/classifier/bundle", "second")[0] == 0


def test_the_supervisor_restarts_processes_that_end(deployed, place, versions):
    first, ports = deployed
    assert run("deploy", "--replicas=2", *ports)[0] == 0
    with front.sending(first) as sender:  # the second server answers meanwhile
        killed = serving()[0]
        os.kill(killed.pid, signal.SIGKILL)
        prometheus.eventually(lambda: len(serving()) == 2 and killed not in serving())
        sender.more()
    for name in ("prometheus", "gateway"):
        [gone] = [process for process in processes.running(members.FOLDER) if process.name == name]
        os.kill(gone.pid, signal.SIGKILL)
        prometheus.eventually(
            lambda gone=gone: [
                p for p in processes.running(members.FOLDER) if p.name == gone.name and p.pid != gone.pid
            ]
        )
    prometheus.eventually(lambda: run("verify")[0] == 0)
    prometheus.eventually(lambda: prometheus.query(f"http://127.0.0.1:{first + 4}", 'up{job="loopline"} == 1'))


def test_without_its_supervisor_verification_fails_and_deploy_brings_it_back(deployed, place):
    assert run("deploy", *deployed[1])[0] == 0
    [supervisor] = [process for process in processes.running(members.FOLDER) if process.name == "supervisor"]
    os.kill(supervisor.pid, signal.SIGKILL)
    _, text = prometheus.eventually(lambda: (result := run("verify"))[0] and result)
    assert "supervisor does not run" in text
    assert run("deploy", *deployed[1])[0] == 0
    assert run("verify")[0] == 0


def test_a_canary_runs_in_the_background_and_deploying_the_same_bundle_ends_it(deployed, place, versions):
    first, ports = deployed
    assert run("deploy", *ports)[0] == 0
    with front.sending(first) as sender:
        code, text = run("canary", "--bundle", "challenger", "--inputs=0", "--steps=50", "--requests=1000000")
        assert (code, "shadow" in text) == (0, True), text
        prometheus.eventually(lambda: versions[1] in sender.since(0))
        assert run("deploy", "--bundle", "challenger", "--rolling")[0] == 0
        mark = sender.more()
        assert set(sender.since(mark)) == {versions[1]}


def test_a_rollout_whose_controller_is_killed_goes_on(deployed, place, versions):
    first, ports = deployed
    assert run("deploy", *ports)[0] == 0
    with front.sending(first) as sender:
        # This controller runs in the foreground, so its process number is not noted.
        waiting = front.loopline("rollout", "start", "classifier", "--bundle", "challenger", "--wait", *CANARY)
        prometheus.eventually(lambda: versions[1] in sender.since(0))
        waiting.kill()
        waiting.communicate()
        prometheus.eventually(lambda: read().stage == "promoted")
    assert "rollout" in (members.FOLDER / "supervisor.log").read_text()
    assert [record.action for record in decisions.read().records].count("promote") == 1


def test_the_state_of_another_version_does_not_end_the_supervisor(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    FOLDER.mkdir(parents=True)
    (FOLDER / "state.json").write_text('{"schema": 99}')
    members.FOLDER.mkdir(parents=True)
    supervised.note([], members.FOLDER)
    assert supervisor.mend() == ["rollout"]
    assert "is of another version of Loopline" in caplog.text


def test_bundles_that_cannot_be_deployed_are_refused(deployed, place):
    (place / "models/classifier/bundle").rename(place / "elsewhere")
    assert "run `make repro` first" in run("deploy")[1]
    assert (
        "two of the bundles are of one model" in run("deploy", "--bundle", "elsewhere", "challenger", *deployed[1])[1]
    )
    assert processes.running(members.FOLDER) == []
