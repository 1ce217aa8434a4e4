"""Profiles, traffic and price tables from files, and the errors for bad ones."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from loopline.errors import LooplineError
from loopline.planning import plan_files

EXAMPLE = Path(__file__).parents[2] / "serving/prices.example.yaml"


def written(tmp_path, text, name="traffic.yaml"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_traffic_of_working_hours(tmp_path):
    rates = plan_files.traffic(written(tmp_path, "base: 1\npeak: 9\nhours: 9-18\ndays: mon-fri\n"))
    assert rates.shape == (168,)
    assert rates.sum() == 168 + 5 * 9 * 8
    assert (rates[8], rates[9], rates[17], rates[18]) == (1, 9, 9, 1)
    assert rates[5 * 24 + 12] == 1, "a Saturday"


def test_traffic_over_midnight_and_over_sunday(tmp_path):
    rates = plan_files.traffic(written(tmp_path, "base: 1\npeak: 9\nhours: 22-2\ndays: sat-mon\n"))
    assert [hour for hour in range(24) if rates[hour] == 9] == [0, 1, 22, 23]
    assert (rates[24 + 23], rates[5 * 24 + 23], rates[6 * 24 + 23]) == (1, 9, 9)


def test_traffic_of_a_table_by_day_or_by_week(tmp_path):
    head = "hour,requests_per_second\n"
    day = plan_files.traffic(written(tmp_path, head + "".join(f"{h},{h}\n" for h in range(24)), "day.csv"))
    np.testing.assert_array_equal(day, np.tile(np.arange(24.0), 7))
    week = plan_files.traffic(written(tmp_path, head + "".join(f"{h},{h}\n" for h in range(168)), "week.csv"))
    np.testing.assert_array_equal(week, np.arange(168.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate: -1\n", "rate"),
        ("rate: .nan\n", "rate"),
        ("rate: 5\npeak: 7\n", "either `rate`"),
        ("base: 5\n", "either `rate`"),
        ("base: 1\npeak: 2\nhours: all\n", "from-to"),
        ("base: 1\npeak: 2\nhours: 9-25\n", "0 to 24"),
        ("base: 1\npeak: 2\nhours: 9-17\ndays: mon-fry\n", "mon-fri"),
        ("burst: 5\n", "burst"),
        ("- a\n", "the file"),
        ("a: [\n", "not YAML"),
    ],
)
def test_the_error_for_bad_traffic_names_the_mistake(tmp_path, text, message):
    with pytest.raises(LooplineError, match=message):
        plan_files.traffic(written(tmp_path, text))


@pytest.mark.parametrize(
    ("rows", "message"),
    [("0,1\n1,2\n", "each of 0 to 23"), ("0,x\n", "all numbers"), ("0,1\n" * 24, "once"), ("0\n", "all numbers")],
)
def test_the_error_for_a_bad_table_names_the_mistake(tmp_path, rows, message):
    with pytest.raises(LooplineError, match=message):
        plan_files.traffic(written(tmp_path, "hour,requests_per_second\n" + rows, "traffic.csv"))
    rows = "".join(f"{hour},{-1 if hour == 3 else 1}\n" for hour in range(24))
    with pytest.raises(LooplineError, match="0 or more"):
        plan_files.traffic(written(tmp_path, "hour,requests_per_second\n" + rows, "traffic.csv"))


def test_a_missing_or_far_too_large_file_is_refused(tmp_path):
    with pytest.raises(LooplineError, match="cannot be read"):
        plan_files.prices(tmp_path / "none.yaml")
    with pytest.raises(LooplineError, match="1 MiB"):
        plan_files.prices(written(tmp_path, " " * (2 << 20)))


def test_the_example_prices_are_readable_and_named_as_examples():
    assert plan_files.prices(EXAMPLE).machines
    rows = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    assert all(name.startswith("example-") for name in [*rows["machines"], *rows["serverless"]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machines": {}}, "machines"),
        ({"machines": {"m": {"vcpu": 0, "memory_gib": 1, "per_hour": 1}}}, "machines.m.vcpu"),
        ({"machines": {"m": {"vcpu": 1, "memory_gib": 1}}}, "machines.m.per_hour"),
        ({"serverless": {"example-small": {}}}, "serverless.example-small"),
    ],
)
def test_the_error_for_a_bad_price_names_its_field(tmp_path, change, message):
    table = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")) | change
    with pytest.raises(LooplineError, match=message):
        plan_files.prices(written(tmp_path, yaml.safe_dump(table), "prices.yaml"))


def test_a_name_in_two_rows_is_an_error(tmp_path):
    table = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    table["serverless"]["example-small"] = table["serverless"]["example-by-uptime"]
    with pytest.raises(LooplineError, match="in one row only"):
        plan_files.prices(written(tmp_path, yaml.safe_dump(table), "prices.yaml"))
