"""The decision log: append-only, readable after any crash, with the champion of any time."""

import json
import multiprocessing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.errors import LooplineError
from loopline.release import decisions
from loopline.release.decisions import DecisionRecord


@pytest.fixture(autouse=True)
def log(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LOOPLINE_DECISIONS", str(tmp_path / "decisions" / "log.jsonl"))
    return decisions.path()


def promote(bundle, model="classifier"):
    return decisions.append(model, "promote", bundle=bundle, champion=bundle, reasons=["better"])


def record(action, champion, *, minute=0):
    start = datetime(2026, 11, 21, 14, tzinfo=UTC)
    time = decisions.stamp(start + timedelta(minutes=minute))
    return DecisionRecord(
        model="m", action=action, bundle=champion or "x", champion=champion, reasons=(), time=time, actor="a"
    )


def test_a_decision_is_one_line_with_its_schema_time_reasons_and_actor(log, monkeypatch):
    monkeypatch.setenv("LOOPLINE_ACTOR", "ada")
    written = decisions.append(
        "text", "refuse", bundle="b", champion=None, reasons=["worse"], evidence={"test_set": "t"}
    )
    [line] = log.read_text().splitlines()
    assert json.loads(line)["schema"] == 1
    assert (written.actor, written.reasons, written.evidence) == ("ada", ("worse",), {"test_set": "t"})
    assert decisions.read().records == (written,)


def test_a_missing_log_has_no_decisions():
    assert decisions.read() == decisions.DecisionLog((), ())


def test_a_truncated_line_is_reported_and_the_next_line_is_readable(log):
    first, _ = promote("one"), promote("two")
    log.write_bytes(log.read_bytes()[:-20])
    assert decisions.read() == decisions.DecisionLog((first,), (2,))
    third = promote("three")
    assert decisions.read() == decisions.DecisionLog((first, third), (2,))


def test_a_line_that_lacks_only_its_line_break_is_not_lost(log):
    first = promote("one")
    log.write_bytes(log.read_bytes().rstrip(b"\n"))
    second = promote("two")
    assert decisions.read() == decisions.DecisionLog((first, second), ())


def test_another_schema_is_refused(log):
    promote("one")
    log.write_text(log.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(LooplineError, match="line 1: schema 2"):
        decisions.read()


def many(number):
    for i in range(25):
        promote(f"{number}-{i}")


def test_writers_do_not_mix_their_lines(log):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=many, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    written = decisions.read()
    assert (len(written.records), written.damaged) == (100, ())
    lines = [json.loads(line)["time"] for line in log.read_text().splitlines()]
    assert lines == sorted(lines)


def test_the_log_gives_the_champion_of_a_time():
    records = [record("promote", "a"), record("refuse", "a", minute=5), record("promote", "b", minute=10)]
    at = [decisions.champions(records, at=datetime(2026, 11, 21, 14, minute, tzinfo=UTC)) for minute in (0, 9, 10)]
    assert [champions["m"].champion for champions in at] == ["a", "a", "b"]
    assert at[1]["m"].action == "promote"  # the decision that made it champion, not the latest one
    assert decisions.champions(records, at=datetime(2026, 11, 21, 13, 59, tzinfo=UTC)) == {}


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        ([], None),
        ([("promote", "a")], None),
        ([("promote", "a"), ("promote", "b")], "a"),
        ([("promote", "a"), ("refuse", "a"), ("promote", "b"), ("refuse", "b")], "a"),
        ([("promote", "a"), ("promote", "b"), ("rollback", "a")], None),
        ([("promote", "a"), ("promote", "b"), ("promote", "c"), ("rollback", "b")], "a"),
        ([("promote", "a"), ("promote", "b"), ("rollback", "a"), ("promote", "c")], "a"),
        ([("promote", "a"), ("promote", "b"), ("fail", "a")], None),
        ([("promote", "a"), ("fail", None), ("promote", "a"), ("promote", "b")], "a"),
        ([("promote", "a"), ("promote", "b"), ("promote", "a")], "b"),
        ([("promote", "a"), ("promote", "b"), ("promote", "b")], "a"),
    ],
)
def test_the_previous_champion_skips_versions_that_were_rolled_back(story, expected):
    records = [record(action, champion, minute=minute) for minute, (action, champion) in enumerate(story)]
    assert decisions.previous(records, "m") == expected


@given(st.lists(st.datetimes(min_value=datetime(1000, 1, 1), timezones=st.just(UTC)), min_size=2))
def test_stamps_sort_in_the_order_of_their_times(moments):
    assert [decisions.stamp(m) for m in sorted(moments)] == sorted(map(decisions.stamp, moments))


def test_a_time_may_have_a_zone():
    assert decisions.moment("2026-11-21T14:05+01:00") == datetime(2026, 11, 21, 13, 5, tzinfo=UTC)


def test_a_wrong_time_is_explained():
    with pytest.raises(LooplineError, match="'yesterday' is not a time"):
        decisions.moment("yesterday")
