#!.venv/bin/python
"""The ML Test Score of this repository, from what the tests just did.

Breck et al., "The ML Test Score: A Rubric for ML Production Readiness and Technical Debt Reduction", IEEE Big Data 2017: four
sections of seven tests. A test that runs by itself is worth a point, one that was made by hand and written down half a point; the
score is the smallest of the four sums. `ml-test-score.yaml` names the evidence, and a point is given only where every named test is
in the report of this run, and passed. Exit code 1: evidence is missing, the score is under the goal, or the page says otherwise.

    make test ARGS="--junitxml=.loopline/tests.xml" && scripts/ml_test_score.py     # --write writes docs/ml-test-score.md
"""

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = "docs/ml-test-score.md"
GOAL = 5.5
Cases = dict[str, list[bool]]


def outcomes(report: Path) -> Cases:
    """`tests/a/test_b.py::test_c` -> whether each of its cases passed; a skipped one did not. A file's name has all of its cases."""
    cases: Cases = defaultdict(list)
    for case in ElementTree.parse(report).getroot().iter("testcase"):  # noqa: S314 - pytest wrote it a minute ago
        path = case.attrib["classname"].replace(".", "/") + ".py"
        passed = not any(case.find(bad) is not None for bad in ("failure", "error", "skipped"))
        for name in (path, f"{path}::{case.attrib['name'].split('[')[0]}"):
            cases[name].append(passed)
    return cases


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def missing(item: dict[str, Any], cases: Cases, root: Path) -> list[str]:
    """What is wrong with an item's evidence."""
    wrong = []
    for test in item.get("tests", []):
        if not cases.get(test):
            wrong.append(f"{test} did not run")
        elif not all(cases[test]):
            wrong.append(
                f"{test} did not pass: {cases[test].count(False)} of {len(cases[test])} cases failed or were skipped"
            )
    if "page" in item:
        name, _, anchor = item["page"].partition("#")
        page = root / "docs" / name
        if not page.is_file() or (anchor and anchor not in anchors(page)):
            wrong.append(f"docs/{item['page']} is not there")
    return wrong


def points(item: dict[str, Any]) -> float:
    """What an item is worth if its evidence holds: a page says that it was done by hand, or that something is left open."""
    return 0.5 if "page" in item else float("tests" in item)


def page(sections: dict[str, Any], given: dict[str, list[float]]) -> str:
    """The page, in Markdown."""
    sums = {name: sum(got) for name, got in given.items()}
    lines = [
        "# Is it ready for production?",
        "",
        'The 28 tests of Breck et al., "The ML Test Score: A Rubric for ML Production Readiness and Technical Debt Reduction"',
        "(IEEE Big Data 2017). A point: a test that CI runs. Half a point: done by hand and written down, or a part is left open.",
        "The score is the smallest of the four sums. `scripts/ml_test_score.py` computes it from the report of the tests that just",
        "ran, and fails where named evidence did not run or did not pass, where the score is under the goal, or where this page says",
        "otherwise.",
        "",
        f"**Score: {min(sums.values()):g}** (goal: {GOAL:g}). The authors call more than 3 strong, more than 5 exceptional.",
        "",
        "| section | points of 7 |",
        "|---|---|",
        *(f"| {name} | {got:g} |" for name, got in sums.items()),
    ]
    for name, items in sections.items():
        lines += ["", f"## {name}", "", "| | test | points | evidence |", "|---|---|---|---|"]
        for number, (item, got) in enumerate(zip(items, given[name], strict=True), 1):
            proof = [f"[{item['page'].split('#')[0]}]({item['page']})"] if "page" in item else []
            proof += [f"`{test}`" for test in item.get("tests", [])]
            said = "<br>".join([item["why"], *proof])
            lines.append(f"| {number} | {item['test']} | {got:g} | {said} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Score, compare, and say what is wrong."""
    parser = argparse.ArgumentParser(description="the ML Test Score, from what the tests just did")
    parser.add_argument("--report", type=Path, default=ROOT / ".loopline/tests.xml", help="of pytest --junitxml")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the repository")
    parser.add_argument("--write", action="store_true", help="write the page in place of comparing it")
    options = parser.parse_args()
    if not options.report.is_file():
        sys.exit(f'{options.report} is not there. Run: make test ARGS="--junitxml=.loopline/tests.xml"')
    sections = yaml.safe_load((options.root / "scripts/ml-test-score.yaml").read_text(encoding="utf-8"))
    if [len(items) for items in sections.values()] != [7] * 4:
        sys.exit("scripts/ml-test-score.yaml must have four sections of seven tests")
    cases = outcomes(options.report)
    wrong: list[str] = []
    given: dict[str, list[float]] = {}
    for name, items in sections.items():
        given[name] = []
        for item in items:
            objections = missing(item, cases, options.root)
            wrong += [f"{name}, {item['test']}: {objection}" for objection in objections]
            given[name].append(0.0 if objections else points(item))
    score = min(map(sum, given.values()))
    if score < GOAL:
        wrong.append(f"the score is {score:g}, under the goal of {GOAL:g}")
    text, path = page(sections, given), options.root / PAGE
    if options.write:
        path.write_text(text, encoding="utf-8")
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        wrong.append(
            f"{PAGE} says something else. Run: scripts/ml_test_score.py --write, look at the difference, and commit it"
        )
    sys.stdout.write("".join(f"{line}\n" for line in [*wrong, f"ML Test Score: {score:g}"]))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
