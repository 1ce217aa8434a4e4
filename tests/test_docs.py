"""The documents keep their word: links lead somewhere, named tests and targets exist, figures are the committed ones."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from loopline import settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md")])


def headings(page):
    """The anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        there = page.parent / target if target else page
        assert there.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in headings(there), f"{page.name} links to {target}#{anchor}"


def test_every_page_is_in_the_index_once():
    listed = re.findall(r"\]\(([^)#]+)\) \|$", (DOCS / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(
        [*(page.name for page in DOCS.glob("*.md") if page.name != "README.md"), "runbooks/README.md"]
    )


def test_the_architecture_names_every_room():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rooms = {path.name for path in (ROOT / "src/loopline").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE)) == rooms


def test_every_test_that_a_page_names_exists():
    named = {page: re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")) for page in PAGES}
    assert len(named[DOCS / "gates.md"]) >= 20
    for page, tests in named.items():
        for path, name in tests:
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{page.name} names {path}::{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_make_targets_suites_and_scripts_exist(page):
    rules = re.findall(r"^([a-z -]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    targets = {name for rule in rules for name in rule.split()}
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"(?:`|^\$ )make ([a-z-]+)", text, re.MULTILINE)) <= targets
    suites = set(re.findall(r"^BENCH_([a-z]+) =", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bSUITE=([a-z]+)", text)) <= suites
    for script in re.findall(r"(?<=`)scripts/[a-z_.-]+", text):
        assert (ROOT / script).is_file(), f"{page.name} names {script}"


def test_the_readme_can_be_read_in_one_go():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 250


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page in (ROOT / "README.md", DOCS / "results.md")],
    ids=lambda page: page.name,
)
@pytest.mark.parametrize("model", settings.load(ROOT / "params.yaml").models)
def test_figures_are_those_of_the_committed_metrics(page, model):
    # The file itself is new after a run on another processor
    shown = ["git", "show", f"HEAD:models/{model}/report.json"]
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


def test_the_glossary_has_at_most_25_words_each_once():
    text = (DOCS / "README.md").read_text(encoding="utf-8").partition("## Glossary")[2]
    words = re.findall(r"^\| (\w+) \| ", text, re.MULTILINE)[1:]  # after the head
    assert 20 <= len(words) <= 25
    assert len(set(words)) == len(words)


SPINE = 6500  # lines: what a person reads in an afternoon
SPINE_ROW = r"^\| \d+ \| \[([\w/.]+)\]\(\.\./src/loopline/\1\) \|"


def test_the_spine_can_be_read_in_an_afternoon():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    files = re.findall(SPINE_ROW, page, re.MULTILINE)
    assert 35 <= len(files) <= 42
    assert len(set(files)) == len(files)
    lines = sum(len((ROOT / "src/loopline" / file).read_text(encoding="utf-8").splitlines()) for file in files)
    assert lines <= SPINE
