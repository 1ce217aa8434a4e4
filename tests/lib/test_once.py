"""Small tools are in `lib`, once each."""

import re
from pathlib import Path

import pytest

import loopline

ROOT = Path(loopline.__file__).parent
# What stands elsewhere, and why `lib` cannot do it.
ELSEWHERE = {
    r"urlopen|urllib\.request\.Request|build_opener": {
        "data/transfer.py": "goes on where a transfer was cut off",
    },
    r"\bos\.(replace|rename)\b|\.partial\b|\.(replace|rename)\((path|target|folder)\b": {
        "batch/predict.py": "names a folder",
        "batch/output.py": "writes to any URL that fsspec knows",
        "data/transfer.py": "keeps what arrived, to go on there",
        "fleet/members.py": "a folder",
        "journal/storage.py": "writes to any URL that fsspec knows",
        "journal/segments.py": "takes a file over from its writer",
        "release/bundle.py": "a folder",
        "release/signature.py": "a library writes and reads the file before it has its name",
        "retraining/facts.py": "knows a folder that is not whole by its name",
        "server/journal_writer.py": "is locked before it has its name",
        "stages/quantize.py": "picks one of several files in a temporary folder",
    },
    r"\bflock\b": {
        "journal/segments.py": "the lock of a file says that its writer lives",
        "release/decisions.py": "the lock of the log itself",
        "server/journal_writer.py": "the lock of a file says that its writer lives",
    },
}


@pytest.mark.parametrize("pattern", ELSEWHERE)
def test_no_other_room_has_a_tool_of_its_own(pattern):
    found = set()
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("lib/") and re.search(pattern, path.read_text(encoding="utf-8")):
            found.add(name)
    assert found == set(ELSEWHERE[pattern])
