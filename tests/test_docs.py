"""The documents keep their word: links lead somewhere, named tests and targets exist, figures are the committed ones."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from loopline import settings

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_gate_names_a_test_that_exists():
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", (ROOT / "docs/gates.md").read_text(encoding="utf-8"))
    assert len(named) >= 20
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^\$ )make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)) <= targets


def test_the_readme_can_be_read_in_one_go():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 250


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name in ("README.md", "results.md")], ids=lambda page: page.name
)
@pytest.mark.parametrize("model", settings.load(ROOT / "params.yaml").models)
def test_figures_are_those_of_the_committed_metrics(page, model):
    shown = [
        "git",
        "show",
        f"HEAD:models/{model}/report.json",
    ]  # the file itself is new after a run on another processor
    report = json.loads(subprocess.run(shown, cwd=ROOT, check=True, capture_output=True).stdout)
    row = re.search(rf"^\| `?{model}`? \|.*$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert row, f"{page.name} has no row for {model}"
    headline, simple = report["metrics"][report["headline"]], report["baselines"]["simple"]["value"]
    for figure in (*headline.values(), simple):
        assert f"{figure:.3f}".removeprefix("0") in row[0], f"{page.name}, {model}: {figure} is not in {row[0]!r}"


def test_no_file_in_git_is_large_or_names_a_machine():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        assert (ROOT / name).stat().st_size <= 2**20, f"{name} is over 1 MB: track it with DVC"
