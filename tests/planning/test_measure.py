"""A real bundle measured by a real server, and the verbs that plan with it."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import bundles
import pytest

from loopline import cli
from loopline.planning import plan_files

PRICES = Path(__file__).parents[2] / "serving/prices.example.yaml"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="private memory is read from Linux's /proc")


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """The file that `loopline profile` wrote of the classifier of brightness."""
    folder = tmp_path_factory.mktemp("profile")
    bundles.classifier(folder / "classifier")
    path = folder / "profile.json"
    words = ["profile", str(folder / "classifier"), "--out", str(path), "--starts", "1", "--rounds", "20"]
    done = subprocess.run([sys.executable, "-m", "loopline.cli", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cold start" in done.stdout
    return path


def test_a_measured_profile_is_plausible(profile):
    measured = plan_files.profile(profile)
    assert (measured.model, len(measured.starts)) == ("classifier", 1)
    assert measured.starts[0] > measured.batches[1]
    assert sorted(measured.batches) == [1, 2, 4, 8, 16, 32]
    assert measured.memory.resident > measured.memory.private > measured.memory.growth
    assert measured.spread[-1][1] >= measured.spread[0][1]


def test_a_plan_is_a_table_json_and_a_picture(profile, tmp_path, capsys):
    words = ["plan", str(profile), "--prices", str(PRICES), "--rate", "5", "--p99-ms", "60000"]
    assert cli.main([*words, "--plot", str(tmp_path / "plan.png")]) == 0
    output = capsys.readouterr().out
    assert "example-small, always on" in output
    assert "example-by-uptime, scale to zero" in output
    assert 0 < (tmp_path / "plan.png").stat().st_size < 200_000
    assert cli.main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["options"][0]["month"] == min(option["month"] for option in plan["options"])
    assert plan["requests_per_second"] == {"mean": 5.0, "peak": 5.0}


def test_a_plan_without_traffic_can_be_drawn(profile, tmp_path):
    words = ["plan", str(profile), "--prices", str(PRICES), "--rate", "0", "--p99-ms", "60000"]
    assert cli.main([*words, "--plot", str(tmp_path / "plan.png")]) == 0


def test_a_plan_needs_prices(profile):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["plan", str(profile), "--rate", "5"])
    assert stopped.value.code == 2


def test_a_goal_that_no_row_meets_is_one_message(profile, capsys):
    assert cli.main(["plan", str(profile), "--prices", str(PRICES), "--rate", "5", "--p99-ms", "0.001"]) == 1
    assert "no row of the price table meets the goal" in capsys.readouterr().err


def test_estimated_memory_is_shown_beside_measured_profiles(profile, capsys):
    assert cli.main(["memory", "7e9", "--bits", "16", "--profile", str(profile), "--prices", str(PRICES)]) == 0
    output = capsys.readouterr().out
    assert "15.6" in output
    assert "example-large" in output
    assert "classifier" in output


def test_the_error_for_a_damaged_profile_names_the_entry(profile, tmp_path, capsys):
    content = json.loads(profile.read_text())
    content["batches"].pop("1")
    (tmp_path / "bad.json").write_text(json.dumps(content))
    assert cli.main(["plan", str(tmp_path / "bad.json"), "--prices", str(PRICES), "--rate", "5"]) == 1
    assert "entry 1" in capsys.readouterr().err


def test_a_server_that_answers_wrongly_is_not_measured(tmp_path, capsys):
    """The bundle's golden answers belong to another threshold."""
    folder = bundles.classifier(tmp_path / "classifier", threshold=10.0).folder
    assert cli.main(["profile", str(folder), "--starts", "1", "--out", str(tmp_path / "profile.json")]) == 1
    assert "golden answers" in capsys.readouterr().err


def test_a_page_gets_fresh_output_between_its_marks_and_one_without_marks_is_refused(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(str(root))
    page = import_module("benchmarks.capacity.__main__")
    monkeypatch.setattr(page, "_shown", lambda command, _: f"{command.split()[1]}!\n")
    names = ("profile", "plan", "memory", "traffic", "check")
    path = tmp_path / "page.md"
    path.write_text("a\n" + "".join(f"<!-- {name} -->\nold\n<!-- end -->\n" for name in names) + "z\n")
    page.write(path, [Path("models/text/bundle")], "checked\n")
    text = path.read_text()
    assert text.startswith("a\n<!-- profile -->\nprofile!\n<!-- end -->")
    assert text.endswith("<!-- check -->\nchecked\n<!-- end -->\nz\n")
    assert "old" not in text
    path.write_text("nothing")
    with pytest.raises(SystemExit, match="must have one"):
        page.write(path, [Path("models/text/bundle")], "checked\n")
