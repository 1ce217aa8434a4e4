"""The parts of `make bench SUITE=drift` that could lie."""

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


def test_a_shift_reaches_the_share_of_the_window_that_it_says(harness):
    protocol = harness("protocol")
    given = protocol.conditions(["noise"], classes=False)
    found = list(protocol.windows(300, None, given, protocol.Size(references=1, nulls=2, sizes=(50, 200))))
    assert len(found) == 2 * (2 + 9)
    for window in found:
        assert len(window.rows) == len(window.changed) == window.n
        assert window.changed.mean() == (window.condition.share if window.condition else 0)
    again = list(protocol.windows(300, None, given, protocol.Size(references=1, nulls=2, sizes=(50, 200))))
    assert all((a.rows == b.rows).all() for a, b in zip(found, again, strict=True)), "every method sees the same"


def test_classes_are_knocked_out_and_one_becomes_most(harness):
    protocol = harness("protocol")
    targets = np.arange(300) % 10
    given = protocol.conditions([], classes=True)
    seen = {}
    for window in protocol.windows(300, targets, given, protocol.Size(references=1, nulls=0, sizes=(400,))):
        seen[window.condition.shift, window.condition.strength] = targets[window.rows]
    assert [seen[protocol.KNOCK_OUT, strength].min() for strength in (1, 2, 3)] == [1, 3, 5]
    shares = [np.mean(seen[protocol.PRIOR, strength] == 0) for strength in (1, 2, 3)]
    np.testing.assert_allclose(shares, (0.25, 0.5, 0.8), atol=0.07)


def row(n, at, figure, **more):
    return {"n": n, "at": at, "A": figure, "Loopline": figure, "before": 0.9, "quality": 0.9, **more}


def test_methods_are_compared_at_the_same_rate_of_false_alarms(harness):
    page = harness("page")
    nulls = [row(50, None, x) for x in range(100)] + [row(100, None, 10 * x) for x in range(100)]
    shifted = [row(50, ["s", 1, 1.0], x) for x in (90, 94, 96, 200)] + [row(100, ["s", 1, 1.0], x) for x in (96, 990)]
    trial = {"rows": nulls + shifted, "seconds": {"A": 1.0}}
    assert page.detections(trial, "A") == 3 / 6, "each size of window has a threshold of its own"
    assert page.detections(trial, "A", lambda r: r["n"] == 50) == 2 / 4
    assert page.detections(trial, "A", lambda r: r["n"] == 7) is None


def test_harm_counts_what_was_called_and_what_was_missed(harness):
    page = harness("page")
    at, said = ["s", 1, 1.0], {"estimates": {"atc": 0.8}, "loss": 0.1}
    rows = [
        row(1000, at, 2.0, harmful=True, **said) | {"quality": 0.8},  # harmful and called
        row(1000, at, 0.5, harmful=True, **said) | {"quality": 0.8},  # harmful and missed: no alarm
        row(50, at, 2.0, harmful=False, **said) | {"quality": 0.8},  # too few to count as missed
        row(50, at, 2.0, harmful=True, **said),  # harmless and called
        row(50, at, 2.0, harmful=False, **said),
    ]
    found = page.harm_of({"rows": rows})
    assert (found["harmless"], found["missed"], found["windows"]) == (0.5, 0.5, (2, 2))
    assert found["error"]["shipped"] == pytest.approx(0.4 * 0.1)


def test_the_limit_of_any_method_is_what_a_test_with_every_label_misses(harness):
    page = harness("page")
    at, of = ["s", 1, 1.0], {"before": 0.9, "error": 0.01, "harmful": False}
    rows = [
        row(1000, at, 2.0, cost=0.06, **of | {"harmful": True}) | {"quality": 0.83},  # both see it
        row(1000, at, 2.0, cost=0.06, **of) | {"quality": 0.83},  # labels alone do: 7 points, over 2 + 1.645
        row(1000, at, 2.0, cost=0.06, **of) | {"quality": 0.865},  # by chance the window lost 3.5 points: nobody does
        row(1000, at, 0.5, cost=0.06, **of) | {"quality": 0.865},
        row(1000, at, 2.0, cost=0.0, **of | {"harmful": True}),  # Loopline alone is wrong
        row(1000, at, 2.0, cost=0.0, **of) | {"quality": 0.86},  # labels alone are
        row(1000, at, 2.0, cost=0.03, **of),  # neither harmless nor harmful
        row(500, at, 2.0, cost=0.06, **of),  # not of 1,000
    ]
    assert page.limit_of({"rows": rows}, ours=False) == (0.5, 0.5, (2, 4))
    assert page.limit_of({"rows": rows}, ours=True) == (0.5, 0.75, (2, 4))
    assert page.limit_of({"rows": rows[6:]}, ours=True) == (None, None, (0, 0))


def test_the_page_on_drift_says_what_a_test_with_every_label_finds():
    """The normal approximation to the power of a one-sided test at 5 % of two shares: 1,000 labels beside 533."""
    page = (ROOT / "docs/drift.md").read_text(encoding="utf-8")
    (head,) = re.findall(r"\| loss, points \|(.+)\|", page)
    losses = [int(cell) / 100 for cell in head.split("|")]
    asked = {"anything lost": 0.0, "over two points lost": 0.02}
    shown = re.findall(r"\| (anything lost|over two points lost), accuracy (\.\d+) \|(.+)\|", page)
    assert len(shown) == 4
    for what, accuracy, cells in shown:
        before = float(accuracy)
        for loss, cell in zip(losses, cells.split("|"), strict=True):
            now = before - loss
            error = (now * (1 - now) / 1000 + before * (1 - before) / 533) ** 0.5
            power = NormalDist().cdf((loss - asked[what]) / error - 1.645)
            assert float(cell) == pytest.approx(power, abs=0.006), (what, accuracy, loss)


def test_another_data_set_is_mixed_in_at_one_strength(harness):
    protocol = harness("protocol")
    given = protocol.conditions([], classes=False, other=True)
    assert [(c.shift, c.strength, c.share) for c in given] == [(protocol.OTHER, 1, share) for share in protocol.SHARES]


def test_of_another_data_set_right_is_what_has_the_same_name(harness, monkeypatch):
    monkeypatch.chdir(ROOT)
    samples = harness("samples")
    spec = ModelSpec(task="classification", labels=("3", "x"), image=ImageInput(height=8, width=8, channels=1))
    found = samples._foreign("digits", spec, 2000)
    assert len(found.inputs) == len(found.targets) == 2000, "more than there are: some come twice"
    assert set(found.targets) == {-1, 0}
    assert 0.05 < (found.targets == 0).mean() < 0.2, "one of ten digits is a 3"
    assert (found.sizes == 28).all()
    spec = ModelSpec(task="text", labels=("de", "en"), text=TextInput(max_tokens=8, pad_id=0, unknown_id=1))
    found = samples._foreign("english-prose", spec, 20)
    assert (found.targets == 1).all()
    assert all(isinstance(text, str) for text in found.inputs)


def test_the_page_says_what_was_trained_on_what_and_what_was_mixed_in(harness):
    page, protocol = harness("page"), harness("protocol")
    rows = [row(50, None, 1), row(50, [protocol.OTHER, 1, 0.5], 9) | {"quality": 0.4}]
    rows += [row(50, [protocol.OTHER, 1, 1.0], 9) | {"quality": 0.1}]
    trial = {"model": "m", "dataset": "cats", "companion": "dogs", "samples": 7, "metric": "f1", "rows": rows}
    assert "| cats | m, 7 samples | f1 0.90 | dogs | 0.10 |" in page._data([trial])


def test_history_goes_on_at_the_pace_of_the_scrape_in_every_replica(harness):
    rules = harness("rules")
    series = [rules.Series("rows_total", 'a="b"', 30.0), rules.Series("share", "", 0.25)]
    found = "".join(rules.lines(series, [1000.0, 1060.0], begin=1000.0, paced=15.0)).splitlines()
    assert found[-1] == "# EOF"
    assert found[:2] == [
        'rows_total{a="b",instance="0",job="loopline"} 0 1000.000',
        'rows_total{a="b",instance="0",job="loopline"} 120 1060.000',
    ]
    assert found[-2] == 'share{instance="3",job="loopline"} 0.25 1060.000'
    assert len(found) == 2 * 2 * rules.REPLICAS + 1
