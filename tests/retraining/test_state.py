"""What is remembered holds at the moments at which a process can die."""

import sqlite3
import threading
import time

import psutil
import pytest
import retrainers

from loopline.release import decisions
from loopline.retraining import policy, runs
from loopline.retraining.facts import Sources
from loopline.retraining.guard import Action, Alert, RetrainingDecision
from loopline.retraining.runs import Place
from loopline.retraining.state import RetrainerStore, key
from loopline.retraining.worker import Worker

ALERT = Alert(model="classifier", name="RetrainCandidate", version="abc")
RETRAIN = RetrainingDecision(Action.RETRAIN, ("drift",))
STEPS = [
    {"name": name, "run": f"/bin/sh -c 'echo {name} >> {{repository}}/done'", "at": "repository"} for name in "abc"
]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOOPLINE_DECISIONS", raising=False)
    made = RetrainerStore(tmp_path / "state")
    yield made
    made.close()


def demands(*steps):
    return policy.RetrainingPolicy.model_validate(retrainers.POLICY | {"here": steps})


def worker(store, tmp_path, *steps):
    place = Place(tmp_path, tmp_path, tmp_path)
    sources = Sources(prometheus="http://127.0.0.1:9", journal=tmp_path, repository=tmp_path, window="1h")
    return Worker(store=store, policy=demands(*steps), place=place, sources=sources)


def decided(store, name="one"):
    """The row of an alert on which a run was decided."""
    id_ = key("classifier", name, "now")
    store.receive([(id_, ALERT)], "alertmanager")
    row = next(row for row in store.alerts() if row.id == id_)
    store.decide(row, RETRAIN, 0.0, "a")
    return row


def test_a_line_that_was_written_and_not_noted_is_not_written_again(store, tmp_path, monkeypatch):
    decided(store)
    one = worker(store, tmp_path, *STEPS)
    with monkeypatch.context() as dying:
        dying.setattr(RetrainerStore, "logged", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            one.write_lines()
    assert len(store.unlogged()) == 1
    one.write_lines()
    assert store.unlogged() == []
    assert [record.action for record in decisions.read().records] == ["retrain"]


def test_the_lines_leave_the_champion_what_it_is(store, tmp_path):
    decisions.append("classifier", "promote", bundle="b" * 64, champion="b" * 64, reasons=["first"])
    decided(store)
    worker(store, tmp_path, *STEPS).write_lines()
    assert decisions.champions(decisions.read().records)["classifier"].champion == "b" * 64


def test_a_decision_and_its_run_are_kept_together_or_not_at_all(store):
    row = decided(store)
    with pytest.raises(sqlite3.IntegrityError):  # one alert, one run
        store.decide(row, RETRAIN, 0.0, "a")
    assert len(store.runs()) == 1
    assert len(store.unlogged()) == 1


def test_a_run_that_broke_off_goes_on_with_its_step_or_where_that_leads_back(store, tmp_path):
    row = decided(store)
    run = store.run(row.id)
    back = [*STEPS[:1], STEPS[1] | {"again": "a"}, *STEPS[2:]]

    def carry(*steps, step, pid):
        (tmp_path / "done").write_text("")
        store.step(run.id, step, pid, 1.0)
        place = Place(tmp_path, tmp_path, tmp_path)
        runs.carry_out(store.run(run.id), demands(*steps), store, place, threading.Event())
        return (tmp_path / "done").read_text().split()

    gone = 2**22 + 1  # no process has it
    assert carry(*STEPS, step="b", pid=gone) == ["b", "c"]
    assert carry(*back, step="b", pid=gone) == ["a", "b", "c"], "it broke off in b"
    assert carry(*back, step="b", pid=None) == ["b", "c"], "it had not begun b"
    assert store.run(run.id).result == "succeeded"


def test_a_step_that_the_policy_no_longer_has_fails_the_run(store, tmp_path):
    row = decided(store)
    store.step(row.id, "gone")
    runs.carry_out(store.run(row.id), demands(*STEPS), store, Place(tmp_path, tmp_path, tmp_path), threading.Event())
    assert store.run(row.id).result == "failed"


@pytest.mark.parametrize(
    ("end", "result", "words"), [("", "succeeded", "every step"), ("; exit 3", "failed", "ended with exit code 3")]
)
def test_the_run_s_timeout_does_not_end_a_step_with_a_time_of_its_own(store, tmp_path, end, result, words):
    row = decided(store)
    step = {"name": "c", "run": f"/bin/sh -c 'sleep 1{end}'", "at": "repository", "own_time": True}
    wanted = demands(step).model_copy(update={"timeout_minutes": 1e-9})
    store.step(row.id, "c")
    runs.carry_out(store.run(row.id), wanted, store, Place(tmp_path, tmp_path, tmp_path), threading.Event())
    assert store.run(row.id).result == result
    (line,) = [line for line in store.unlogged() if line.action == f"retrain-{result}"]
    assert words in " ".join(line.reasons)


def test_told_to_stop_it_ends_the_step_and_leaves_the_run_for_the_next_start(store, tmp_path):
    row = decided(store)
    stop = threading.Event()
    stop.set()
    slow = STEPS[0] | {"run": "/bin/sh -c 'sleep 600'"}
    runs.carry_out(store.run(row.id), demands(slow), store, Place(tmp_path, tmp_path, tmp_path), stop)
    left = store.run(row.id)
    assert (left.result, left.step) == (None, "a")
    assert not psutil.pid_exists(left.pid)


def test_an_old_signature_is_forgotten_and_a_young_one_is_not(store):
    assert store.receive([], "grafana", ("old", time.time() - 1))
    assert store.receive([], "grafana", ("young", time.time() + 600))
    assert store.receive([], "grafana", ("old", time.time() + 600))
    assert not store.receive([], "grafana", ("young", time.time() + 600))


def test_the_same_fingerprint_of_another_start_or_model_is_another_alert():
    found = {key("a", "f", "now"), key("a", "f", "then"), key("b", "f", "now"), key("a", "g", "now")}
    assert len(found) == 4


def test_an_alert_that_came_through_no_door_and_one_that_had_its_run_start_nothing(store, tmp_path):
    one = worker(store, tmp_path, *STEPS)
    store.receive([("forged", ALERT)], "somebody")
    one.decide(store.alerts()[0])
    row = decided(store)
    store.end(store.under_way(), "succeeded", "done")
    one.decide(row)
    forged, again = store.alerts()
    assert "nobody knows who sent it" in forged.reasons
    assert "it had its run" in again.reasons
    assert len(store.runs()) == 1


def test_an_alert_that_comes_while_a_run_is_under_way_waits(store, tmp_path):
    one = worker(store, tmp_path, *STEPS)
    under_way = decided(store)
    store.receive([("other", ALERT)], "grafana")
    one.decide(store.alerts()[1])
    assert f"run {under_way.id} is under way" in store.alerts()[1].reasons
    assert len(store.runs()) == 1


def test_a_step_that_is_killed_is_begun_again_and_what_it_started_is_ended(store, tmp_path):
    script = tmp_path / "once"
    script.write_text("echo b >> done; test -e left && exit 0; sleep 600 & echo $! > left; kill -9 $$")
    decided(store)
    steps = STEPS[0], {"name": "b", "run": f"/bin/sh {script}", "at": "repository", "again": "a"}, STEPS[2]
    worker(store, tmp_path, *steps).work(threading.Event())
    assert (tmp_path / "done").read_text().split() == ["a", "b", "a", "b", "c"]
    assert store.runs()[0].result == "succeeded"
    left = int((tmp_path / "left").read_text())
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE


def test_a_step_that_is_killed_again_and_again_fails_the_run(store, tmp_path):
    decided(store)
    dies = {"name": "a", "run": "/bin/sh -c 'echo a >> {repository}/done; kill -9 $$'", "at": "repository"}
    worker(store, tmp_path, dies).work(threading.Event())
    assert (tmp_path / "done").read_text().split() == ["a"] * (runs.KILLS + 1)
    assert store.runs()[0].result == "failed"
