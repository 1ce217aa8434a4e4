"""`loopline status`: processes, served bundles, stages, decisions and alerts at a glance."""

import json
import os
import subprocess
import sys

import bundles
import prometheus
import psutil
import pytest
from answering import Server

from loopline.deploy import status
from loopline.fleet import members
from loopline.lib import processes
from loopline.release import decisions
from loopline.retraining.guard import Alert
from loopline.retraining.run_store import RetrainerStore
from loopline.rollout import state
from loopline.training.progress_bar import Progress


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty repository, without a server on the usual port."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOOPLINE_DECISIONS", raising=False)
    monkeypatch.setattr(status, "SERVER", f"http://127.0.0.1:{prometheus.free_port()}")
    return tmp_path


def ourselves(name, address):
    """This process, noted as one that `up` started."""
    return processes.Process(name, os.getpid(), psutil.Process().create_time(), address)


def test_the_status_of_an_empty_repository_says_what_to_run_next(repository):
    text = status.as_text(status.look())
    assert "nothing that `loopline up` or `loopline deploy` started" in text
    assert "no server answers at http://127.0.0.1:" in text
    assert "unknown: no Prometheus" in text
    assert "make repro makes the bundles" in text
    (repository / "models/text/bundle").mkdir(parents=True)
    assert "make serve starts a server" in status.as_text(status.look())


def test_the_status_shows_running_and_ended_processes_and_the_served_bundles(repository):
    (repository / "models/classifier").mkdir(parents=True)
    kept = bundles.classifier(repository / "models/classifier/bundle")
    rows = [{"name": "classifier", "version": kept.version[:12]}, {"name": "text", "version": "0123456789ab"}]
    server = Server(lambda *_: (200, json.dumps(rows).encode()))
    members.FOLDER.mkdir(parents=True)
    processes.save([ourselves("gateway", server.url)], members.FOLDER)
    parts = [{"name": name, "address": "http://127.0.0.1:1"} for name in ("gateway", "journal")]
    (members.FOLDER / "parts.json").write_text(json.dumps(parts))
    seen = status.look()
    server.close()
    assert [(part.name, part.running) for part in seen.parts] == [("gateway", True), ("journal", False)]
    assert (seen.url, seen.steps, seen.problems) == (server.url, [], [])
    text = status.as_text(seen)
    assert f"classifier {kept.version[:12]}  models/classifier/bundle" in text
    assert "text 0123456789ab  (its bundle is not here)" in text
    assert "ENDED" in text


def test_a_server_that_does_not_answer_is_a_problem(repository):
    members.FOLDER.mkdir(parents=True)
    processes.save([ourselves("server-1", f"http://127.0.0.1:{prometheus.free_port()}")], members.FOLDER)
    seen = status.look()
    assert "cannot be reached" in seen.problems[0]
    assert "make down, then make up" in seen.steps[0]


def test_a_server_of_make_serve_is_found_on_its_port(repository, monkeypatch):
    server = Server(lambda *_: (200, b'[{"name": "text", "version": "0123456789ab"}]'))
    monkeypatch.setattr(status, "SERVER", server.url)
    seen = status.look()
    server.close()
    assert [model.model for model in seen.served] == ["text"]
    assert seen.steps == ["make up starts servers with monitoring"]


def test_a_running_stage_is_named_with_its_model(repository):
    words = ["loopline", "stage", "train", "classifier"]
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)", *words])
    try:
        assert [(stage.stage, stage.model, stage.folder) for stage in status.look().stages] == [
            ("train", "classifier", ".")
        ]
        assert "train of classifier for " in status.as_text(status.look())
        progress = Progress("classifier", epochs=10, steps=1, done=0)
        progress.epoch(3, {"loss": 0.5})
        assert " s, epoch 3 of 10, in ." in status.as_text(status.look())
        progress.close()
        assert [stage.progress for stage in status.look().stages] == [""]
    finally:
        child.kill()
        child.wait()
    assert status.look().stages == []


def test_the_status_shows_decisions_retraining_and_rollout(repository):
    for number in range(5):
        decisions.append("text", "refuse", bundle=f"{number}" * 12, champion=None, reasons=[f"reason {number}"])
    store = RetrainerStore(status.RETRAINER)
    alert = Alert(model="text", name="RetrainCandidate", version="v", firing=True, authentic=True)
    store.receive([("text-1", alert)], "alertmanager")
    store.close()
    (status.RETRAINER / "paused").write_text("by hand")
    state.write(
        state.RolloutState(
            id="1f", model="text", champion="a" * 64, challenger="b" * 64, before="x", after="y", stage="canary"
        )
    )
    seen = status.look()
    assert [record.reasons[0] for record in seen.decided] == ["reason 2", "reason 3", "reason 4"]
    text = status.as_text(seen)
    assert "paused: by hand" in text
    assert "text: RetrainCandidate text-1, not looked at yet" in text
    assert "text: bbbbbbbbbbbb for aaaaaaaaaaaa: canary 5 %" in text


def test_alerts_that_fire_come_from_the_prometheus_of_the_stack(repository):
    labels = {
        "alertname": "DriftWarning",
        "severity": "warning",
        "model": "text",
        "version": "v1",
        "alertstate": "firing",
    }
    answer = {"data": {"result": [{"metric": labels, "value": [1.0, "1"]}]}}
    server = Server(lambda *_: (200, json.dumps(answer).encode()))
    members.FOLDER.mkdir(parents=True)
    processes.save([ourselves("prometheus", server.url)], members.FOLDER)
    seen = status.look()
    server.close()
    assert seen.alerts == [status.FiringAlert("DriftWarning", "warning", "text", "v1")]
    assert "DriftWarning (warning) text v1" in status.as_text(seen)


def test_the_command_prints_both_forms(repository):
    command = [sys.executable, "-m", "loopline.cli", "status", "--url", status.SERVER]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout).keys() >= {"parts", "served", "stages", "rollout", "decided", "alerts", "steps"}
    assert "make repro" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
