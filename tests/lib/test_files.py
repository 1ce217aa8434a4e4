import signal
import subprocess
import sys

import pytest

from loopline.lib import files

KILLED = """
import os, signal
from pathlib import Path
from loopline.lib import files
with files.replacing(Path("result")) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""

MANY = """
import sys
from pathlib import Path
from loopline.lib import files
for _ in range(300):
    files.write(Path(sys.argv[1]), "x" * 9999, shared=True)
"""


def test_a_file_is_replaced_completely_and_its_folder_is_made(tmp_path):
    path = tmp_path / "new" / "result"
    files.write(path, "né\n")
    files.write(path, b"\xff", shared=True)
    assert path.read_bytes() == b"\xff"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_only_the_old_file(tmp_path, error):
    path = tmp_path / "result"
    files.write(path, "old")
    with pytest.raises(error), files.replacing(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file_and_the_next_writer_cleans_up(tmp_path):
    path = tmp_path / "result"
    files.write(path, "old")
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    files.write(path, "new")
    assert list(tmp_path.iterdir()) == [path]


def test_two_concurrent_writers_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "result"
    writers = [subprocess.Popen([sys.executable, "-c", MANY, path]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert path.read_text() == "x" * 9999
