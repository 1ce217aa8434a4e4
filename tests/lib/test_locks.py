import subprocess
import sys

import pytest

from loopline.lib import locks

HOLDER = """
import sys, time
from pathlib import Path
from loopline.lib import locks
with locks.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_excludes_other_processes_until_its_holder_is_killed(tmp_path):
    path = tmp_path / "made" / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError), locks.held(path, wait=False):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with locks.held(path):
        pass
    with locks.held(path, wait=False):
        pass
