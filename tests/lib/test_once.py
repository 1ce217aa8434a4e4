"""Small tools are in `lib` only; exceptions are listed here."""

import re
from pathlib import Path

import pytest

import loopline

ROOT = Path(loopline.__file__).parent
# Modules that have such a tool of their own, each with the reason why they cannot use `lib`.
ELSEWHERE = {
    r"urlopen|urllib\.request\.Request|build_opener": {
        "data/transfer.py": "continues an interrupted transfer",
    },
    r"\bos\.(replace|rename)\b|\.partial\b|\.(replace|rename)\((path|target|folder)\b": {
        "batch/predict.py": "renames a folder",
        "batch/output.py": "writes to any URL that fsspec knows",
        "data/transfer.py": "keeps a partial file, to continue it later",
        "fleet/members.py": "renames a folder",
        "journal/storage.py": "writes to any URL that fsspec knows",
        "journal/segments.py": "takes a file over from its writer",
        "release/bundle.py": "renames a folder",
        "release/signature.py": "a library writes and reads the file before it is renamed",
        "retraining/facts.py": "recognises an incomplete folder by its name",
        "server/journal_writer.py": "locks the file before it is renamed",
        "stages/quantize.py": "picks one of several files in a temporary folder",
    },
    r"\bflock\b": {
        "journal/segments.py": "a lock on a file means that its writer is alive",
        "release/decisions.py": "locks the log itself",
        "server/journal_writer.py": "a lock on a file means that its writer is alive",
    },
}


@pytest.mark.parametrize("pattern", ELSEWHERE)
def test_only_listed_modules_outside_lib_have_their_own_tools(pattern):
    modules = set()
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("lib/") and re.search(pattern, path.read_text(encoding="utf-8")):
            modules.add(name)
    assert modules == set(ELSEWHERE[pattern])
