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
def test_a_replica_is_loaded_twice_and_compared_with_the_prediction(tmp_path):
    folder = bundles.classifier(tmp_path / "classifier").folder
    arguments = [str(folder), "--rounds", "20", "--seconds", "3", "--repeats", "1", "--busy"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.capacity", *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if "%" in line]
    assert [row[1] for row in rows] == ["30%", "60%"]
    for row in rows:
        assert all(float(figure.replace(",", "")) > 0 for figure in row[2:])


@pytest.mark.parametrize(
    ("average", "cpus", "words"),
    [
        (0.1, 2, ""),
        (0.5, 2, ""),
        (0.6, 2, "the load average is 0.60, over 0.50: other work runs on these 2 cores"),
        (4.0, 16, ""),
        (11.7, 16, "the load average is 11.70, over 4.00: other work runs on these 16 cores"),
    ],
)
def test_a_load_of_over_a_quarter_of_the_cores_is_other_work(monkeypatch, average, cpus, words):
    monkeypatch.syspath_prepend(str(ROOT))
    assert import_module("benchmarks.capacity.__main__").busy(average, cpus) == words


def test_measuring_beside_other_work_needs_an_option_and_the_figures_say_so(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    capacity = import_module("benchmarks.capacity.__main__")
    monkeypatch.setattr(capacity.os, "getloadavg", lambda: (11.0, 9.0, 8.0))
    monkeypatch.setattr(capacity.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(capacity, "compare", lambda *_, **__: [["digits", *["1"] * 7]])
    monkeypatch.setattr(sys, "argv", ["capacity", str(tmp_path)])
    assert capacity.main() == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "the load average is 11.00, over 0.50: other work runs on these 2 cores. Wait" in output.err
    monkeypatch.setattr(sys, "argv", ["capacity", str(tmp_path), "--busy"])
    assert capacity.main() == 0
    output = capsys.readouterr().out
    assert "The load average was 11.0 at its start" in output
    assert "**Measured on a busy machine: the load average is 11.00, over 0.50" in output


def test_a_random_schedule_keeps_its_rate_and_is_reproducible(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    sender = import_module("benchmarks.serving.sender")
    due = list(sender.times(5.0, [(100.0, 10.0), (1000.0, 10.0)], 3))
    assert due == sorted(due) == list(sender.times(5.0, [(100.0, 10.0), (1000.0, 10.0)], 3))
    first = [moment for moment in due if moment < 15]
    assert len(first) == pytest.approx(1000, rel=0.15)
    assert len(due) - len(first) == pytest.approx(10_000, rel=0.05)
    assert len({round(b - a, 6) for a, b in pairwise(first)}) > 500, "not evenly"
