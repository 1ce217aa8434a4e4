"""Rollouts with a real gateway and real servers, under load: nothing is lost, and every end is a consistent one."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import brightness
import bundles
import front
import prometheus
import pytest

from loopline.errors import LooplineError
from loopline.fleet import members, supervised
from loopline.lib import locks, processes
from loopline.release import decisions, signature
from loopline.rollout.judge import RolloutPolicy
from loopline.rollout.state import FOLDER, RolloutPlan, read

pytestmark = [front.needed, prometheus.needed]
QUICK = RolloutPlan(
    steps=(5, 50),
    hold=120,
    every=0.1,
    inputs=20,
    policy=RolloutPolicy(requests=60, slice=5, points=10, slower=20.0, shadow_inputs=20, shadow_slower=50.0),
)
INPUTS = [brightness.png(value) for value in range(0, 250, 5)]


def consistent(version, place):
    """One champion server of this version, nobody on trial, nothing shared, nothing left over."""
    wanted = members.read()
    assert (wanted.baseline.replicas, wanted.challenger.replicas) == (0, 0)
    names = [process.name for process in processes.running(members.FOLDER)]
    assert len([n for n in names if n.startswith("champion-")]) == 1
    assert not [n for n in names if n.startswith(("baseline-", "challenger-"))]
    assert set(members.strays()) <= set(names)
    assert wanted.champion.bundles["classifier"].rpartition("/")[2].startswith(version)


def test_a_good_challenger_is_promoted_and_put_back_and_no_request_is_lost(up, place, versions, gateway):
    old, new = versions
    with front.sending(up) as sender:
        controller = front.controller(INPUTS)
        controller.start(place / "challenger", QUICK)
        assert controller.run().stage == "promoted"
        mark = sender.more()
        assert set(sender.since(mark)) == {new}
        consistent(new, place)
        assert controller.rollback("classifier").stage == "rolled back"
        mark = sender.more()
        assert set(sender.since(mark)) == {old}
        consistent(old, place)
    assert gateway.shared() == {"classifier": 0}
    assert [r.action for r in decisions.read().records] == ["shadow", "canary", "canary", "promote", "rollback"]
    assert controller.start(place / "challenger", QUICK) == read(), "the last rollout's end"
    bundles.classifier(place / "third", code="e" * 64)
    third = controller.start(place / "third", QUICK)
    assert third.stage == "shadow"
    controller.rollback("classifier")
    with pytest.raises(LooplineError, match="was rolled back before"):
        controller.start(place / "challenger", QUICK)


def test_servers_that_want_a_token_are_asked_with_it(place, monkeypatch, request):
    monkeypatch.setenv("LOOPLINE_TOKEN", "s3cret")
    up = request.getfixturevalue("up")
    with front.sending(up, token="s3cret"):
        controller = front.controller()
        controller.start(place / "challenger", replace(QUICK, steps=(50,), inputs=0))
        assert controller.run().stage == "promoted"


def test_an_unsigned_challenger_is_rolled_back_where_a_key_is_demanded_and_a_signed_one_promoted(
    place, versions, monkeypatch, request
):
    for words in ("ecparam -name prime256v1 -genkey -noout -out key.pem", "ec -in key.pem -pubout -out key.pub"):
        subprocess.run(["openssl", *words.split()], check=True, capture_output=True)
    signature.sign(place / "models/classifier/bundle", place / "key.pem")
    monkeypatch.setenv("LOOPLINE_VERIFY_KEY", "key.pub")
    up = request.getfixturevalue("up")
    monkeypatch.delenv("LOOPLINE_VERIFY_KEY")  # a rollout from another shell demands it all the same
    unsigned = replace(QUICK, steps=(50,), inputs=0)
    with front.sending(up):
        controller = front.controller()
        controller.start(place / "challenger", unsigned)
        state = controller.run()
        assert (state.stage, "is not signed" in str(state.reasons)) == ("rolled back", True), state
        consistent(versions[0], place)
        signature.sign(place / "challenger", place / "key.pem")
        controller.start(place / "challenger", unsigned, again=True)
        assert controller.run().stage == "promoted"


ENDLESS = replace(QUICK, inputs=0, policy=replace(QUICK.policy, requests=10**6))


def test_a_killed_challenger_costs_no_request_and_is_rolled_back(up, place, versions):
    with front.sending(up) as sender:
        front.controller().start(place / "challenger", ENDLESS)
        running = front.loopline("rollout", "resume")
        prometheus.eventually(lambda: versions[1] in sender.since(0))
        os.kill(members.servers("challenger")[0].pid, signal.SIGKILL)
        mark = sender.more(50)
        said, _ = running.communicate(timeout=120)
        assert running.returncode == 2, said
        assert "rolled back" in said
        assert set(sender.since(mark)) == {versions[0]}
    consistent(versions[0], place)


def test_a_challenger_that_answers_500_is_rolled_back(up, place, versions):
    bundles.failing(place / "failing")
    controller = front.controller()
    controller.start(place / "failing", ENDLESS)
    sender = front.Sender(up)
    state = controller.run()
    mark = sender.more(50)
    sender.more(200)
    late = sender.answers[mark:]
    counts = sender.end()
    assert state.stage == "rolled back"
    assert "requests failed" in state.reasons[0] or "more than chance" in state.reasons[0]
    assert withdrawn(state)
    assert set(counts) == {200, 500}
    assert {status for status, _, _ in late} == {200}
    consistent(versions[0], place)


def test_shadow_stops_what_does_not_answer_before_any_request_reaches_it(up, place, versions):
    bundles.failing(place / "failing")
    with front.sending(up) as sender:
        controller = front.controller(INPUTS[::-1])
        controller.start(place / "failing", QUICK)
        state = controller.run()
    assert state.stage == "rolled back"
    assert "not answered" in state.reasons[0]
    assert withdrawn(state)
    assert set(sender.since(0)) == {versions[0]}


def test_what_stays_unclear_is_rolled_back_and_never_promoted_by_time_out(up, place, versions):
    with front.sending(up):
        controller = front.controller()
        controller.start(place / "challenger", replace(ENDLESS, hold=1.0))
        state = controller.run()
    assert state.stage == "rolled back"
    assert "no verdict within 1 s" in state.reasons[0]
    consistent(versions[0], place)
    assert not withdrawn(state), "what is unclear says nothing against it"


def test_the_note_of_one_who_was_killed_stops_nobody_even_if_its_number_lives(up, place):
    front.controller().start(place / "challenger", replace(ENDLESS, hold=1.0))
    (FOLDER / f"asked.{os.getpid()}.1.5").touch()
    running = front.loopline("rollout", "resume")
    try:
        assert running.wait(120) == 2
    finally:
        running.kill()
        running.communicate()


def withdrawn(state):
    return decisions.withdrawn(decisions.read().records, state.model, state.challenger)


def test_too_few_inputs_for_the_shadow_are_said_before_anything_begins(up, place):
    with pytest.raises(LooplineError, match="has 5 answered inputs of the 20"):
        front.controller(INPUTS[:5]).start(place / "challenger", QUICK)
    assert read() is None


def test_inputs_that_only_the_challenger_could_answer_are_no_pass(up, place):
    controller = front.controller([b"no image"] * 20)
    controller.start(place / "challenger", QUICK)
    state = controller.run()
    assert (state.stage, "20 inputs are wanted" in state.reasons[0]) == ("rolled back", True)
    assert not withdrawn(state)


def test_a_challenger_that_cannot_be_loaded_is_rolled_back(up, place, versions):
    controller = front.controller()
    state = controller.start(place / "challenger", replace(QUICK, inputs=0))
    (place / state.after / "model.onnx").write_bytes(b"")
    with front.sending(up):
        state = controller.run()
    assert state.stage == "rolled back"
    assert "model.onnx was changed" in state.reasons[0]
    assert not withdrawn(state)
    consistent(versions[0], place)


@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_by_hand_it_is_over_in_seconds_whatever_the_controller_is_at(up, place, versions, verb):
    with front.sending(up) as sender:
        front.controller().start(place / "challenger", ENDLESS)
        running = front.loopline("rollout", "resume")
        prometheus.eventually(lambda: versions[1] in sender.since(0))
        by_hand = front.loopline("rollout", verb, "classifier")
        said, wrong = by_hand.communicate(timeout=120)
        assert by_hand.returncode == 0, wrong
        theirs, _ = running.communicate(timeout=120)
        assert theirs == said
        mark = sender.more()
        stays = versions[1] if verb == "promote" else versions[0]
        assert set(sender.since(mark)) == {stays}
    consistent(stays, place)


MORTAL = """
import os, signal, sys
from loopline.lib import files, processes
from loopline.rollout import controller, state

stage, name = sys.argv[1:]
room = {"start": processes, "write": files}[name]
do = getattr(room, name)

def last(*given, **more):
    done = do(*given, **more)
    if state.read().stage == stage:
        os.kill(os.getpid(), signal.SIGKILL)
    return done

setattr(room, name, last)
controller.Controller(lambda *_: []).run()
"""


@pytest.mark.parametrize(
    ("stage", "after"), [("shadow", "start"), ("canary", "write"), ("promote", "start"), ("roll back", "write")]
)
def test_a_controller_killed_at_any_stage_is_followed_by_one_that_goes_on(up, place, versions, stage, after):
    """It dies the moment the stage is on the disk; in `shadow` and `promote`, with a server that it started and did not note."""
    plan = replace(QUICK, inputs=0) if stage != "roll back" else replace(ENDLESS, hold=0.5)
    # It too would go on
    processes.end([one for one in processes.running(members.FOLDER) if one.name == supervised.SUPERVISOR])
    with front.sending(up) as sender:
        state = front.controller().start(place / "challenger", plan)
        killed = subprocess.run([sys.executable, "-c", MORTAL, stage, after], timeout=240)
        assert killed.returncode == -signal.SIGKILL
        assert read().stage == stage
        assert front.controller().start(place / "challenger", plan).id == state.id, "the same rollout goes on"
        state = front.controller().run()
        assert state.stage == ("rolled back" if stage == "roll back" else "promoted")
        mark = sender.more()
        stays = versions[0] if stage == "roll back" else versions[1]
        assert set(sender.since(mark)) == {stays}
    consistent(stays, place)
    actions = [record.action for record in decisions.read().records]
    assert len([a for a in actions if a in ("promote", "rollback")]) == 1


def test_what_cannot_be_rolled_out_is_refused(up, place):
    controller = front.controller()
    with pytest.raises(LooplineError, match="serves already"):
        controller.start(place / "models/classifier/bundle", QUICK)
    bundles.text(place / "text")
    with pytest.raises(LooplineError, match="text is not served: there are classifier"):
        controller.start(place / "text", QUICK)
    with pytest.raises(LooplineError, match="there is no rollout"):
        controller.run()
    with pytest.raises(LooplineError, match="no rollout of classifier"):
        controller.rollback("classifier")
    refused = front.loopline("rollout", "start", "classifier", "--bundle", "challenger", "--journal", "nowhere")
    assert refused.wait(60) == 1
    refused.communicate()
    assert read() is None, "no journal is no fault of the challenger"
    controller.start(place / "challenger", ENDLESS)
    bundles.classifier(place / "third", code="e" * 64)
    with pytest.raises(LooplineError, match="a rollout is under way"):
        controller.start(place / "third", QUICK)


def test_the_command_line_takes_a_challenger_all_the_way(up, place, versions):
    with front.sending(up):
        options = [
            "--steps",
            "5,50",
            "--requests",
            60,
            "--points",
            10,
            "--slice",
            5,
            "--slower",
            20,
            "--inputs",
            0,
            "--every",
            0.1,
        ]
        done = front.loopline("rollout", "start", "classifier", "--bundle", "challenger", "--wait", *options)
        said, wrong = done.communicate(timeout=120)
        assert done.returncode == 0, wrong
        assert "promoted" in said
        twice = front.loopline("rollout", "start", "classifier", "--bundle", "challenger", "--wait", *options)
        assert (twice.communicate(timeout=120)[0], twice.returncode) == (said, 0)
        back = front.loopline("rollout", "rollback", "classifier", "--reason", "a customer called")
        assert back.communicate(timeout=60)[0].endswith("a customer called\n")
        twice = front.loopline("rollout", "start", "classifier", "--bundle", "challenger", "--wait", *options)
        assert twice.communicate(timeout=60)[0].endswith("a customer called\n")
        assert twice.returncode == 2
        behind = front.loopline("rollout", "start", "classifier", "--bundle", "challenger", "--again", *options)
        assert behind.communicate(timeout=60)[1] == ""
        prometheus.eventually(lambda: "promoted" in front.loopline("rollout", "status").communicate()[0])
    assert decisions.champions(decisions.read().records)["classifier"].champion.startswith(versions[1])


def test_what_was_promoted_and_serves_no_more_begins_anew(up, place):
    controller = front.controller()
    first = controller.start(place / "challenger", ENDLESS)
    assert controller.promote("classifier").stage == "promoted"
    assert controller.start(place / "challenger", ENDLESS).id == first.id
    members.apply(members.read().with_champion("classifier", str(place / "models/classifier/bundle")))
    assert controller.start(place / "challenger", ENDLESS).id != first.id


def test_a_start_of_another_does_not_wait_for_who_is_at_it(up, place):
    state = front.controller().start(place / "challenger", ENDLESS)
    with locks.held(FOLDER / "controller.lock"):
        second = front.loopline("rollout", "start", "classifier", "--bundle", "models/classifier/bundle", "--wait")
        _, wrong = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"a rollout is under way: {state}" in wrong


def test_a_second_start_of_the_same_waits_for_its_end(up, place):
    state = front.controller().start(place / "challenger", ENDLESS)
    with locks.held(FOLDER / "controller.lock"):
        second = front.loopline("rollout", "start", "classifier", "--bundle", "challenger", "--wait", "--inputs", 0)
        with pytest.raises(subprocess.TimeoutExpired):
            second.communicate(timeout=5)
    front.loopline("rollout", "promote", "classifier").communicate(timeout=60)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert "promoted" in said
    assert read(FOLDER).id == state.id


@pytest.mark.parametrize("steps", ["60", "25,5", "", "five"])
def test_steps_that_are_none_are_refused(place, steps):
    done = front.loopline("rollout", "start", "classifier", "--bundle", "challenger", "--steps", steps)
    assert "rising percents up to 50" in done.communicate()[1]


def test_down_ends_a_rollout_with_all_its_servers(up, place):
    front.controller().start(place / "challenger", ENDLESS)
    done = front.loopline("rollout", "start", "classifier", "--bundle", "challenger")
    done.communicate()
    prometheus.eventually(lambda: members.servers("challenger") and members.servers("baseline"))
    found = processes.running(members.FOLDER)
    assert "rollout" in {process.name for process in found}
    front.loopline("down").communicate()
    assert not any(map(processes.alive, found))
    assert members.strays() == {}


def test_a_model_that_was_never_on_trial_cannot_be_rolled_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LooplineError, match="there was no rollout of text"):
        front.controller().rollback("text")
