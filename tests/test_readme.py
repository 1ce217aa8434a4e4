"""`scripts/readme`: what the README shows as a command's output is what the command prints."""

import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOADER = SourceFileLoader("readme", str(ROOT / "scripts/readme"))
readme = module_from_spec(spec_from_loader("readme", LOADER))
LOADER.exec_module(readme)
SHOWN = '{"version":"…","label":"de"}'


def test_the_readme_shows_output_and_it_is_checked():
    shown = [output for _, output in readme.commands((ROOT / "README.md").read_text(encoding="utf-8")) if output]
    assert len(shown) >= 3
    assert all(len(output.replace("…", "").strip()) > 10 for output in shown)  # an ellipsis alone would fit anything


def test_the_readme_says_how_many_files_the_spine_has():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    files = re.findall(r"^\| \d+ \| \[", page, re.MULTILINE)
    assert f"the {len(files)} files of the spine" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_lines_under_a_command_are_its_output():
    page = "```console\n$ one --a       # why\nfirst\n  second\n\n$ two\n```\ntext\n```console\n$ three\nlast\n```\n"
    assert readme.commands(page) == [("one --a", "first\n  second"), ("two", ""), ("three", "last")]


def test_what_differs_from_run_to_run_is_left_out():
    readme.compare("curl", SHOWN, '{"version":"0a1b","label":"de"}\n')
    readme.compare("list", "first …\n…\nlast", "first one   \nsecond\nthird\nlast\n")


@pytest.mark.parametrize(
    "printed", ['{"version":"0a1b","label":"en"}', '{"version":"0a1b"}', '{"version":"0a1b","label":"de"} and more', ""]
)
def test_other_output_is_refused_with_both(printed):
    with pytest.raises(AssertionError, match="the README shows:") as found:
        readme.compare("curl", SHOWN, printed)
    assert printed in str(found.value)
