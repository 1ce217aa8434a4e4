"""The comparison of predicted with measured latency, and the schedule that it sends on."""

import os
import subprocess
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import bundles
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="the sender uses epoll")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two cores are needed")
def test_a_replica_is_loaded_twice_and_set_beside_what_was_predicted(tmp_path):
    folder = bundles.classifier(tmp_path / "classifier").folder
    words = [str(folder), "--rounds", "20", "--seconds", "0.5", "--repeats", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.capacity", *words], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if "%" in line]
    assert [row[1] for row in rows] == ["30%", "60%"]
    for row in rows:
        assert all(float(figure.replace(",", "")) > 0 for figure in row[2:])


def test_a_schedule_by_chance_keeps_its_rate_and_is_the_same_again(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    sender = import_module("benchmarks.serving.sender")
    due = list(sender.times(5.0, [(100.0, 10.0), (1000.0, 10.0)], 3))
    assert due == sorted(due) == list(sender.times(5.0, [(100.0, 10.0), (1000.0, 10.0)], 3))
    first = [one for one in due if one < 15]
    assert len(first) == pytest.approx(1000, rel=0.15)
    assert len(due) - len(first) == pytest.approx(10_000, rel=0.05)
    assert len({round(b - a, 6) for a, b in pairwise(first)}) > 500, "not evenly"
