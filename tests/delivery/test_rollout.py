"""Rollouts with a real gateway and real servers, under load: nothing is lost, and every end is a consistent one."""

import os
import signal
from dataclasses import replace

import brightness
import front
import prometheus
import pytest

from loopline import processes
from loopline.delivery import fleet, rollout
from loopline.delivery.judge import Policy
from loopline.errors import LooplineError
from loopline.release import decisions

pytestmark = [front.needed, prometheus.needed]
QUICK = rollout.Plan(
    steps=(5, 50),
    hold=120,
    every=0.1,
    inputs=20,
    policy=Policy(requests=60, slice=5, points=10, slower=20.0, shadow_inputs=20, shadow_slower=50.0),
)
INPUTS = [brightness.png(value) for value in range(0, 250, 5)]


def consistent(version, place):
    """One champion server of this version, nobody on trial, nothing shared, nothing left over."""
    wanted = fleet.read()
    assert (wanted.baseline.replicas, wanted.challenger.replicas) == (0, 0)
    names = [process.name for process in processes.running(fleet.FOLDER)]
    assert len([n for n in names if n.startswith("champion-")]) == 1
    assert not [n for n in names if n.startswith(("baseline-", "challenger-"))]
    assert set(fleet.strays()) <= set(names)
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
    with pytest.raises(LooplineError, match="was rolled back before"):
        controller.start(place / "challenger", QUICK)


def test_a_killed_challenger_costs_no_request_and_is_rolled_back(up, place, versions):
    with front.sending(up) as sender:
        patient = replace(QUICK, policy=replace(QUICK.policy, requests=10**6))
        front.controller().start(place / "challenger", replace(patient, inputs=0))
        running = front.loopline("rollout", "resume")
        prometheus.eventually(lambda: versions[1] in sender.since(0))
        os.kill(fleet.servers("challenger")[0].pid, signal.SIGKILL)
        mark = len(sender.answers)
        said, _ = running.communicate(timeout=120)
        assert running.returncode == 2, said
        assert "rolled back" in said
        assert set(sender.since(mark + 10)) == {versions[0]}
    consistent(versions[0], place)
