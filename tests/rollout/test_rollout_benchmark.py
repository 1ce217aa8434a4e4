"""The benchmark of the judge runs, names missed targets, and its committed page describes the shipped policy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.rollout import page

    return page


def test_a_quick_run_writes_a_page_and_a_picture(tmp_path):
    (tmp_path / "docs").mkdir()
    command = [sys.executable, "-m", "benchmarks.rollout", "--quick", "--docs", tmp_path / "docs"]
    command += ["--results", tmp_path / "figures.json"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| p95 +20 % |" in (tmp_path / "docs/rollout-benchmark.md").read_text()
    assert (tmp_path / "docs/pictures/rollout-benchmark.png").stat().st_size > 5_000


def test_a_missed_target_is_named(page):
    def figures(same, faulty):
        row = {"size": page.SHIPPED.requests, "timed_out": 0.0, "requests": 1, "reason": "errors"}
        return {
            "rows": [row | {"fault": f.name, "rolled_back": same if f == page.SAME else faulty} for f in page.FAULTS]
        }

    assert page.missed(figures(0.02, 0.95)) == []
    assert page.missed(figures(0.03, 0.95)) == ["identical: 3.0% rolled back"]
    assert len(page.missed(figures(0.0, 0.94))) == len(page.FAULTS) - 1


def test_the_committed_page_describes_the_shipped_policy_and_meets_every_target(page):
    text = (ROOT / "docs/rollout-benchmark.md").read_text()
    assert f"Targets at the shipped {page.SHIPPED.requests:,} requests" in text
    assert "Every target is met" in text
