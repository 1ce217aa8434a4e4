"""The stored state stays correct whenever a process dies."""

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
from loopline.retraining.run_store import RetrainerStore, key
from loopline.retraining.runs import Place
from loopline.retraining.worker import Worker, write_lines

ALERT = Alert(model="classifier", name="RetrainCandidate", version="abc")
RETRAIN = RetrainingDecision(Action.RETRAIN, ("drift",))
STEPS = [
    {"name": name, "run": f"/bin/sh -c 'echo {name} >> {{repository}}/done'", "at": "repository"} for name in "abc"
]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOOPLINE_DECISIONS", raising=False)
    opened = RetrainerStore(tmp_path / "state")
    yield opened
    opened.close()


def demands(*steps):
    return policy.RetrainingPolicy.model_validate(retrainers.POLICY | {"here": steps})


def make_worker(store, tmp_path, *steps):
    place = Place(tmp_path, tmp_path, tmp_path)
    sources = Sources(prometheus="http://127.0.0.1:9", journal=tmp_path, repository=tmp_path, window="1h")
    return Worker(store=store, policy=demands(*steps), place=place, sources=sources)


def decided(store, fingerprint="one"):
    """Store an alert and the decision to retrain; return the alert's row from before the decision."""
    id_ = key("classifier", fingerprint, "now")
    store.receive([(id_, ALERT)], "alertmanager")
    row = next(row for row in store.alerts() if row.id == id_)
    store.decide(row, RETRAIN, 0.0, "a")
    return row


def test_a_line_that_was_written_and_not_noted_is_not_written_again(store, monkeypatch):
    decided(store)
    with monkeypatch.context() as dying:
        dying.setattr(RetrainerStore, "logged", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_lines(store)
    assert len(store.unlogged()) == 1
    write_lines(store)
    assert store.unlogged() == []
    assert [record.action for record in decisions.read().records] == ["retrain"]


def test_the_retrainer_s_lines_do_not_change_the_champion(store):
    decisions.append("classifier", "promote", bundle="b" * 64, champion="b" * 64, reasons=["first"])
    decided(store)
    write_lines(store)
    assert decisions.champions(decisions.read().records)["classifier"].champion == "b" * 64


def test_a_decision_and_its_run_are_stored_together_or_not_at_all(store):
    row = decided(store)
    with pytest.raises(sqlite3.IntegrityError):  # one alert, one run
        store.decide(row, RETRAIN, 0.0, "a")
    assert len(store.runs()) == 1
    assert len(store.unlogged()) == 1


def test_an_interrupted_run_resumes_at_its_step_or_at_the_one_named_by_again(store, tmp_path):
    row = decided(store)
    run = store.run(row.id)
    back = [*STEPS[:1], STEPS[1] | {"again": "a"}, *STEPS[2:]]

    def carry(*steps, step, pid):
        (tmp_path / "done").write_text("")
        store.step(run.id, step, pid, 1.0)
        place = Place(tmp_path, tmp_path, tmp_path)
        runs.carry_out(store.run(run.id), demands(*steps), store, place, threading.Event())
        return (tmp_path / "done").read_text().split()

    gone = 2**22 + 1  # no process has this id
    assert carry(*STEPS, step="b", pid=gone) == ["b", "c"]
    assert carry(*back, step="b", pid=gone) == ["a", "b", "c"], "b was interrupted"
    assert carry(*back, step="b", pid=None) == ["b", "c"], "b had not started"
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
    demanded = demands(step).model_copy(update={"timeout_minutes": 1e-9})
    store.step(row.id, "c")
    runs.carry_out(store.run(row.id), demanded, store, Place(tmp_path, tmp_path, tmp_path), threading.Event())
    assert store.run(row.id).result == result
    (line,) = [line for line in store.unlogged() if line.action == f"retrain-{result}"]
    assert words in " ".join(line.reasons)


def test_stopping_ends_the_step_and_leaves_the_run_for_the_next_start(store, tmp_path):
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
    ids = {key("a", "f", "now"), key("a", "f", "then"), key("b", "f", "now"), key("a", "g", "now")}
    assert len(ids) == 4


def test_an_unauthenticated_alert_and_one_that_had_its_run_start_nothing(store, tmp_path):
    worker = make_worker(store, tmp_path, *STEPS)
    store.receive([("forged", ALERT)], "elsewhere")
    worker.decide(store.alerts()[0])
    row = decided(store)
    store.end(store.under_way(), "succeeded", "done")
    worker.decide(row)
    forged, again = store.alerts()
    assert "the sender was not authenticated" in forged.reasons
    assert "the alert already had its run" in again.reasons
    assert len(store.runs()) == 1


def test_an_alert_that_comes_while_a_run_is_under_way_waits(store, tmp_path):
    worker = make_worker(store, tmp_path, *STEPS)
    under_way = decided(store)
    store.receive([("other", ALERT)], "grafana")
    worker.decide(store.alerts()[1])
    assert f"run {under_way.id} is under way" in store.alerts()[1].reasons
    assert len(store.runs()) == 1


def test_a_killed_step_is_started_again_and_its_children_are_ended(store, tmp_path):
    script = tmp_path / "once"
    script.write_text("echo b >> done; test -e left && exit 0; sleep 600 & echo $! > left; kill -9 $$")
    decided(store)
    steps = STEPS[0], {"name": "b", "run": f"/bin/sh {script}", "at": "repository", "again": "a"}, STEPS[2]
    make_worker(store, tmp_path, *steps).work(threading.Event())
    assert (tmp_path / "done").read_text().split() == ["a", "b", "a", "b", "c"]
    assert store.runs()[0].result == "succeeded"
    left = int((tmp_path / "left").read_text())
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE


def test_a_step_that_is_killed_too_often_fails_the_run(store, tmp_path):
    decided(store)
    dies = {"name": "a", "run": "/bin/sh -c 'echo a >> {repository}/done; kill -9 $$'", "at": "repository"}
    make_worker(store, tmp_path, dies).work(threading.Event())
    assert (tmp_path / "done").read_text().split() == ["a"] * (runs.KILLS + 1)
    assert store.runs()[0].result == "failed"


def test_a_retrainer_that_is_killed_itself_remembers_the_kills_of_its_steps(store, tmp_path):
    row = decided(store)
    dies = {"name": "a", "run": "/bin/sh -c 'echo a >> {repository}/done; kill -9 $$'", "at": "repository"}
    for _ in range(runs.KILLS):
        store.kill(row.id)
    make_worker(store, tmp_path, dies).work(threading.Event())
    assert (tmp_path / "done").read_text().split() == ["a"]
    assert store.runs()[0].result == "failed"


def test_a_database_of_an_earlier_version_is_opened_and_keeps_its_runs(store, tmp_path):
    row = decided(store)
    earlier = sqlite3.connect(store.folder / "state.db")
    earlier.execute("ALTER TABLE runs DROP COLUMN kills")
    earlier.close()
    opened = RetrainerStore(store.folder)
    assert (opened.run(row.id).step, opened.run(row.id).kills) == ("a", 0)
    opened.close()


def test_the_worker_leaves_alone_a_run_that_no_alert_started(store, tmp_path):
    run = store.begin("mine", "classifier", "", "a")
    assert not make_worker(store, tmp_path, *STEPS).work(threading.Event())
    assert store.run("mine") == run
