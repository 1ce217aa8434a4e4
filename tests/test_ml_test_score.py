"""`scripts/ml_test_score.py`: a point is given only for evidence that ran and passed."""

import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ITEMS = [item for items in yaml.safe_load((ROOT / "scripts/ml-test-score.yaml").read_text()).values() for item in items]
NAMED = sorted({test for item in ITEMS for test in item.get("tests", [])})
SCHEMA = "tests/stages/test_validate.py::test_bad_data_stops_the_pipeline_with_the_reason_and_the_remedy"


@pytest.fixture
def repository(tmp_path):
    """A copy of what the script reads, and a report in which every named test passed."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/ml-test-score.yaml", tmp_path / "scripts")
    suite = ElementTree.Element("testsuite")
    for test in NAMED:
        path, _, name = test.partition("::")
        where = path.removesuffix(".py").replace("/", ".")
        ElementTree.SubElement(suite, "testcase", classname=where, name=f"{name or 'test_any'}[one]")
    ElementTree.ElementTree(suite).write(tmp_path / "tests.xml")
    return tmp_path


def score(repository, *options):
    command = [sys.executable, ROOT / "scripts/ml_test_score.py", "--root", repository]
    return subprocess.run(
        [*command, "--report", repository / "tests.xml", *options], capture_output=True, text=True, check=False
    )


def change(repository, edit):
    """Edit the report's case of SCHEMA: edit(suite, case)."""
    tree = ElementTree.parse(repository / "tests.xml")
    name = SCHEMA.split("::")[1] + "[one]"
    edit(tree.getroot(), next(case for case in tree.iter("testcase") if case.get("name") == name))
    tree.write(repository / "tests.xml")


@pytest.mark.parametrize("test", NAMED)
def test_named_evidence_exists(test):
    path, _, name = test.partition("::")
    assert f"def {name or 'test_'}" in (ROOT / path).read_text(encoding="utf-8")


def test_with_all_evidence_the_committed_page_is_right_and_the_goal_is_reached(repository):
    done = score(repository)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize("outcome", ["failure", "error", "skipped"])
def test_evidence_that_did_not_pass_gives_no_point(repository, outcome):
    change(repository, lambda _, case: ElementTree.SubElement(case, outcome))
    done = score(repository)
    assert done.returncode == 1
    assert f"{SCHEMA} did not pass: 1 of 1 cases failed or were skipped" in done.stdout


def test_one_bad_case_of_many_gives_no_point(repository):
    def add(suite, case):
        other = ElementTree.SubElement(
            suite, "testcase", case.attrib | {"name": case.get("name").replace("one", "two")}
        )
        ElementTree.SubElement(other, "skipped")

    change(repository, add)
    done = score(repository)
    assert (done.returncode, f"{SCHEMA} did not pass: 1 of 2 cases" in done.stdout) == (1, True)


def test_evidence_that_did_not_run_gives_no_point(repository):
    change(repository, lambda suite, case: suite.remove(case))
    done = score(repository, "--write")  # a page that is written anew hides nothing
    assert (done.returncode, f"{SCHEMA} did not run" in done.stdout) == (1, True)


def test_a_page_that_says_more_than_the_run_is_refused(repository):
    page = repository / "docs/ml-test-score.md"
    page.write_text(page.read_text(encoding="utf-8").replace("**Score: 5", "**Score: 6"), encoding="utf-8")
    done = score(repository)
    assert (done.returncode, "docs/ml-test-score.md says something else" in done.stdout) == (1, True)


def test_what_is_written_down_must_be_there(repository):
    page = repository / "docs/training.md"
    page.write_text(page.read_text(encoding="utf-8").replace("## What was tried", "## Other"), encoding="utf-8")
    done = score(repository)
    assert (done.returncode, "docs/training.md#what-was-tried is not there" in done.stdout) == (1, True)


def test_a_score_under_the_goal_is_refused(repository):
    table = repository / "scripts/ml-test-score.yaml"
    content = yaml.safe_load(table.read_text(encoding="utf-8"))
    for item in content["Monitoring"][:4]:
        item.pop("tests")
    table.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    done = score(repository, "--write")
    assert (done.returncode, "under the goal of 5" in done.stdout) == (1, True)


def test_without_a_report_it_says_what_to_run(repository):
    (repository / "tests.xml").unlink()
    done = score(repository)
    assert (done.returncode, "make test ARGS=" in done.stderr) == (1, True)
