"""Rollouts with a real gateway and real servers under load: no request is lost, and every end is consistent."""

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
    """Assert that one champion server of this version runs, that no lane is on trial and that no server is left over."""
    fleet = members.read()
    assert (fleet.baseline.replicas, fleet.challenger.replicas) == (0, 0)
    names = [process.name for process in processes.running(members.FOLDER)]
    assert len([n for n in names if n.startswith("champion-")]) == 1
    assert not [n for n in names if n.startswith(("baseline-", "challenger-"))]
    assert set(members.strays()) <= set(names)
    assert fleet.champion.bundles["classifier"].rpartition("/")[2].startswith(version)


def test_a_good_challenger_is_promoted_and_rolled_back_and_no_request_is_lost(up, place, versions, gateway):
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


def test_servers_that_demand_a_token_get_it(place, monkeypatch, request):
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
    monkeypatch.delenv("LOOPLINE_VERIFY_KEY")  # a rollout from another shell demands the signature all the same
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
        printed, _ = running.communicate(timeout=120)
        assert running.returncode == 2, printed
        assert "rolled back" in printed
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


def test_shadow_stops_a_failing_challenger_before_any_request_reaches_it(up, place, versions):
    bundles.failing(place / "failing")
    with front.sending(up) as sender:
        controller = front.controller(INPUTS[::-1])
        controller.start(place / "failing", QUICK)
        state = controller.run()
    assert state.stage == "rolled back"
    assert "not answered" in state.reasons[0]
    assert withdrawn(state)
    assert set(sender.since(0)) == {versions[0]}


def test_an_unclear_canary_is_rolled_back_when_the_time_runs_out_and_never_promoted(up, place, versions):
    with front.sending(up):
        controller = front.controller()
        controller.start(place / "challenger", replace(ENDLESS, hold=1.0))
        state = controller.run()
    assert state.stage == "rolled back"
    assert "no verdict within 1 s" in state.reasons[0]
    consistent(versions[0], place)
    assert not withdrawn(state), "an unclear canary does not count against the challenger"


def test_the_note_of_a_killed_command_stops_no_rollout_even_if_its_process_number_is_in_use(up, place):
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


def test_too_few_inputs_for_the_shadow_are_reported_before_anything_begins(up, place):
    with pytest.raises(LooplineError, match="has 5 answered inputs of the 20"):
        front.controller(INPUTS[:5]).start(place / "challenger", QUICK)
    assert read() is None


def test_inputs_that_the_champion_does_not_answer_never_pass_the_shadow(up, place):
    controller = front.controller([b"no image"] * 20)
    controller.start(place / "challenger", QUICK)
    state = controller.run()
    assert (state.stage, "20 inputs are needed" in state.reasons[0]) == ("rolled back", True)
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
def test_a_manual_command_ends_a_rollout_in_seconds_whatever_the_controller_does(up, place, versions, verb):
    with front.sending(up) as sender:
        front.controller().start(place / "challenger", ENDLESS)
        running = front.loopline("rollout", "resume")
        prometheus.eventually(lambda: versions[1] in sender.since(0))
        by_hand = front.loopline("rollout", verb, "classifier")
        printed, errors = by_hand.communicate(timeout=120)
        assert by_hand.returncode == 0, errors
        assert running.communicate(timeout=120)[0] == printed, "the controller ends with the same state"
        mark = sender.more()
        stays = versions[1] if verb == "promote" else versions[0]
        assert set(sender.since(mark)) == {stays}
    consistent(stays, place)


MORTAL = """
import os, signal, sys
from loopline.lib import files, processes
from loopline.rollout import controller, state

stage, name = sys.argv[1:]
module = {"start": processes, "write": files}[name]
function = getattr(module, name)

def last(*arguments, **options):
    result = function(*arguments, **options)
    if state.read().stage == stage:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(module, name, last)
controller.Controller(lambda *_: []).run()
"""


@pytest.mark.parametrize(
    ("stage", "after"), [("shadow", "start"), ("canary", "write"), ("promote", "start"), ("roll back", "write")]
)
def test_after_a_controller_is_killed_at_any_stage_the_next_one_goes_on(up, place, versions, stage, after):
    """It dies as soon as the stage is saved; in `shadow` and `promote`, after it started a server that it has not noted."""
    plan = replace(QUICK, inputs=0) if stage != "roll back" else replace(ENDLESS, hold=0.5)
    # The supervisor would also start a controller.
    processes.end([process for process in processes.running(members.FOLDER) if process.name == supervised.SUPERVISOR])
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
    assert len([action for action in actions if action in ("promote", "rollback")]) == 1


def test_a_bundle_that_cannot_be_rolled_out_is_refused(up, place):
    controller = front.controller()
    with pytest.raises(LooplineError, match="already serves"):
        controller.start(place / "models/classifier/bundle", QUICK)
    bundles.text(place / "text")
    with pytest.raises(LooplineError, match="text is not served; the models served are classifier"):
        controller.start(place / "text", QUICK)
    with pytest.raises(LooplineError, match="there is no rollout"):
        controller.run()
    with pytest.raises(LooplineError, match="no rollout of classifier"):
        controller.rollback("classifier")
    refused = front.loopline("rollout", "start", "classifier", "--bundle", "challenger", "--journal", "nowhere")
    assert refused.wait(60) == 1
    refused.communicate()
    assert read() is None, "a missing journal is not the challenger's fault"
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
        printed, errors = done.communicate(timeout=120)
        assert done.returncode == 0, errors
        assert "promoted" in printed
        twice = front.loopline("rollout", "start", "classifier", "--bundle", "challenger", "--wait", *options)
        assert (twice.communicate(timeout=120)[0], twice.returncode) == (printed, 0)
        back = front.loopline("rollout", "rollback", "classifier", "--reason", "a customer called")
        assert back.communicate(timeout=60)[0].endswith("a customer called\n")
        twice = front.loopline("rollout", "start", "classifier", "--bundle", "challenger", "--wait", *options)
        assert twice.communicate(timeout=60)[0].endswith("a customer called\n")
        assert twice.returncode == 2
        behind = front.loopline("rollout", "start", "classifier", "--bundle", "challenger", "--again", *options)
        assert behind.communicate(timeout=60)[1] == ""
        prometheus.eventually(lambda: "promoted" in front.loopline("rollout", "status").communicate()[0])
    assert decisions.champions(decisions.read().records)["classifier"].champion.startswith(versions[1])


def test_a_promoted_bundle_that_no_longer_serves_can_be_rolled_out_again(up, place):
    controller = front.controller()
    first = controller.start(place / "challenger", ENDLESS)
    assert controller.promote("classifier").stage == "promoted"
    assert controller.start(place / "challenger", ENDLESS).id == first.id
    members.apply(members.read().with_champion("classifier", str(place / "models/classifier/bundle")))
    assert controller.start(place / "challenger", ENDLESS).id != first.id


def test_a_start_of_another_bundle_is_refused_without_waiting(up, place):
    state = front.controller().start(place / "challenger", ENDLESS)
    with locks.held(FOLDER / "controller.lock"):
        second = front.loopline("rollout", "start", "classifier", "--bundle", "models/classifier/bundle", "--wait")
        _, errors = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"a rollout is under way: {state}" in errors


def test_a_second_start_of_the_same_bundle_waits_for_its_end(up, place):
    state = front.controller().start(place / "challenger", ENDLESS)
    with locks.held(FOLDER / "controller.lock"):
        second = front.loopline("rollout", "start", "classifier", "--bundle", "challenger", "--wait", "--inputs", 0)
        with pytest.raises(subprocess.TimeoutExpired):
            second.communicate(timeout=5)
    front.loopline("rollout", "promote", "classifier").communicate(timeout=60)
    printed, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert "promoted" in printed
    assert read(FOLDER).id == state.id


@pytest.mark.parametrize("steps", ["60", "25,5", "", "five"])
def test_invalid_steps_are_refused(place, steps):
    done = front.loopline("rollout", "start", "classifier", "--bundle", "challenger", "--steps", steps)
    assert "rising percents up to 50" in done.communicate()[1]


def test_down_ends_a_rollout_with_all_its_servers(up, place):
    front.controller().start(place / "challenger", ENDLESS)
    done = front.loopline("rollout", "start", "classifier", "--bundle", "challenger")
    done.communicate()
    prometheus.eventually(lambda: members.servers("challenger") and members.servers("baseline"))
    running = processes.running(members.FOLDER)
    assert "rollout" in {process.name for process in running}
    front.loopline("down").communicate()
    assert not any(map(processes.alive, running))
    assert members.strays() == {}


def test_a_model_that_was_never_on_trial_cannot_be_rolled_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LooplineError, match="there was no rollout of text"):
        front.controller().rollback("text")
