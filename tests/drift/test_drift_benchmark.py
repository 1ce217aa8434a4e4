"""The parts of `make bench SUITE=drift` that could report wrong figures."""

import re
from importlib import import_module
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from loopline.tasks.spec import ImageInput, ModelSpec, TextInput

ROOT = Path(__file__).parents[2]


@pytest.fixture
def harness(monkeypatch):
    """harness(name) -> a module of the benchmark."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: import_module(f"benchmarks.drift.{name}")


def test_a_condition_shifts_the_share_of_the_window_that_it_states(harness):
    protocol = harness("protocol")
    conditions = protocol.conditions(["noise"], classes=False)
    windows = list(protocol.windows(300, None, conditions, protocol.Size(references=1, nulls=2, sizes=(50, 200))))
    assert len(windows) == 2 * (2 + 9)
    for window in windows:
        assert len(window.rows) == len(window.changed) == window.n
        assert window.changed.mean() == (window.condition.share if window.condition else 0)
    again = list(protocol.windows(300, None, conditions, protocol.Size(references=1, nulls=2, sizes=(50, 200))))
    assert all((a.rows == b.rows).all() for a, b in zip(windows, again, strict=True)), "every method sees the same rows"


def test_classes_are_removed_and_one_class_becomes_the_majority(harness):
    protocol = harness("protocol")
    targets = np.arange(300) % 10
    conditions = protocol.conditions([], classes=True)
    rows = {}
    for window in protocol.windows(300, targets, conditions, protocol.Size(references=1, nulls=0, sizes=(400,))):
        rows[window.condition.shift, window.condition.strength] = targets[window.rows]
    assert [rows[protocol.KNOCK_OUT, strength].min() for strength in (1, 2, 3)] == [1, 3, 5]
    shares = [np.mean(rows[protocol.PRIOR, strength] == 0) for strength in (1, 2, 3)]
    np.testing.assert_allclose(shares, (0.25, 0.5, 0.8), atol=0.07)


def row(n, at, figure, **more):
    return {"n": n, "at": at, "A": figure, "Loopline": figure, "before": 0.9, "quality": 0.9, **more}


def test_methods_are_compared_at_the_same_rate_of_false_alarms(harness):
    page = harness("page")
    nulls = [row(50, None, x) for x in range(100)] + [row(100, None, 10 * x) for x in range(100)]
    shifted = [row(50, ["s", 1, 1.0], x) for x in (90, 94, 96, 200)] + [row(100, ["s", 1, 1.0], x) for x in (96, 990)]
    trial = {"rows": nulls + shifted, "seconds": {"A": 1.0}}
    assert page.detections(trial, "A") == 3 / 6, "each window size has its own threshold"
    assert page.detections(trial, "A", lambda r: r["n"] == 50) == 2 / 4
    assert page.detections(trial, "A", lambda r: r["n"] == 7) is None


def test_harm_counts_wrong_calls_and_missed_windows(harness):
    page = harness("page")
    at, verdict = ["s", 1, 1.0], {"estimates": {"atc": 0.8}, "loss": 0.1}
    rows = [
        row(1000, at, 2.0, harmful=True, **verdict) | {"quality": 0.8},  # harmful and called harmful
        row(1000, at, 0.5, harmful=True, **verdict) | {"quality": 0.8},  # harmful and missed: no alarm
        row(50, at, 2.0, harmful=False, **verdict) | {"quality": 0.8},  # too few to count as missed
        row(50, at, 2.0, harmful=True, **verdict),  # harmless and called harmful
        row(50, at, 2.0, harmful=False, **verdict),
    ]
    harm = page.harm_of({"rows": rows})
    assert (harm["harmless"], harm["missed"], harm["windows"]) == (0.5, 0.5, (2, 2))
    assert harm["error"]["shipped"] == pytest.approx(0.4 * 0.1)


def test_the_limit_of_any_method_is_the_share_that_a_test_with_all_labels_misses(harness):
    page = harness("page")
    at, fields = ["s", 1, 1.0], {"before": 0.9, "error": 0.01, "harmful": False}
    rows = [
        row(1000, at, 2.0, cost=0.06, **fields | {"harmful": True}) | {"quality": 0.83},  # both detect it
        row(1000, at, 2.0, cost=0.06, **fields)
        | {"quality": 0.83},  # only the labels detect it: 7 points, over 2 + 1.645
        row(1000, at, 2.0, cost=0.06, **fields)
        | {"quality": 0.865},  # by chance the window lost 3.5 points: neither detects it
        row(1000, at, 0.5, cost=0.06, **fields) | {"quality": 0.865},
        row(1000, at, 2.0, cost=0.0, **fields | {"harmful": True}),  # only Loopline is wrong
        row(1000, at, 2.0, cost=0.0, **fields) | {"quality": 0.86},  # only the labels are wrong
        row(1000, at, 2.0, cost=0.03, **fields),  # neither harmless nor harmful
        row(500, at, 2.0, cost=0.06, **fields),  # not a window of 1,000
    ]
    assert page.limit_of({"rows": rows}, labelled=True) == (0.5, 0.5, (2, 4))
    assert page.limit_of({"rows": rows}, labelled=False) == (0.5, 0.75, (2, 4))
    assert page.limit_of({"rows": rows[6:]}, labelled=False) == (None, None, (0, 0))


def test_the_page_on_drift_states_the_power_of_a_test_with_all_labels():
    """Computes the power of a one-sided test of two shares at 5 % by the normal approximation: 1,000 labels against 533."""
    page = (ROOT / "docs/drift.md").read_text(encoding="utf-8")
    (head,) = re.findall(r"\| loss, points \|(.+)\|", page)
    losses = [int(cell) / 100 for cell in head.split("|")]
    least_loss = {"anything lost": 0.0, "over two points lost": 0.02}
    shown = re.findall(r"\| (anything lost|over two points lost), accuracy (\.\d+) \|(.+)\|", page)
    assert len(shown) == 4
    for question, accuracy, cells in shown:
        before = float(accuracy)
        for loss, cell in zip(losses, cells.split("|"), strict=True):
            now = before - loss
            error = (now * (1 - now) / 1000 + before * (1 - before) / 533) ** 0.5
            power = NormalDist().cdf((loss - least_loss[question]) / error - 1.645)
            assert float(cell) == pytest.approx(power, abs=0.006), (question, accuracy, loss)


def test_another_data_set_is_mixed_in_at_one_strength(harness):
    protocol = harness("protocol")
    conditions = protocol.conditions([], classes=False, other=True)
    assert [(c.shift, c.strength, c.share) for c in conditions] == [
        (protocol.OTHER, 1, share) for share in protocol.SHARES
    ]


def test_in_another_data_set_a_label_is_right_if_it_has_the_same_name(harness, monkeypatch):
    monkeypatch.chdir(ROOT)
    samples = harness("samples")
    spec = ModelSpec(task="classification", labels=("3", "x"), image=ImageInput(height=8, width=8, channels=1))
    foreign = samples._foreign("digits", spec, 2000)
    assert len(foreign.inputs) == len(foreign.targets) == 2000, "more than the data set has, so some come twice"
    assert set(foreign.targets) == {-1, 0}
    assert 0.05 < (foreign.targets == 0).mean() < 0.2, "one of ten digits is a 3"
    assert (foreign.sizes == 28).all()
    spec = ModelSpec(task="text", labels=("de", "en"), text=TextInput(max_tokens=8, pad_id=0, unknown_id=1))
    foreign = samples._foreign("english-prose", spec, 20)
    assert (foreign.targets == 1).all()
    assert all(isinstance(text, str) for text in foreign.inputs)


def test_the_page_names_the_training_data_and_the_data_that_was_mixed_in(harness):
    page, protocol = harness("page"), harness("protocol")
    rows = [row(50, None, 1), row(50, [protocol.OTHER, 1, 0.5], 9) | {"quality": 0.4}]
    rows += [row(50, [protocol.OTHER, 1, 1.0], 9) | {"quality": 0.1}]
    trial = {"model": "m", "dataset": "cats", "companion": "dogs", "samples": 7, "metric": "f1", "rows": rows}
    assert "| cats | m, 7 samples | f1 0.90 | dogs | 0.10 |" in page._data([trial])


def test_the_counters_of_every_replica_rise_at_the_pace_of_the_scrapes(harness):
    rules = harness("rules")
    series = [rules.Series("rows_total", 'a="b"', 30.0), rules.Series("share", "", 0.25)]
    lines = "".join(rules.lines(series, [1000.0, 1060.0], begin=1000.0, paced=15.0)).splitlines()
    assert lines[-1] == "# EOF"
    assert lines[:2] == [
        'rows_total{a="b",instance="0",job="loopline"} 0 1000.000',
        'rows_total{a="b",instance="0",job="loopline"} 120 1060.000',
    ]
    assert lines[-2] == 'share{instance="3",job="loopline"} 0.25 1060.000'
    assert len(lines) == 2 * 2 * rules.REPLICAS + 1
