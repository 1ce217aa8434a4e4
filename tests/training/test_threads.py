"""The package's settings of OpenMP: the same number of threads on every machine, and threads that sleep while they wait."""

import os
import subprocess
import sys

SCRIPT = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # a machine with one core
import loopline, torch
print(torch.get_num_threads())
"""


def torch_in_its_own_process(**environment):
    """Return the number of threads, and the settings that the OpenMP runtime prints when it is loaded."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
    command = [sys.executable, "-c", SCRIPT]
    environment = clean | {"OMP_DISPLAY_ENV": "VERBOSE"} | environment
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout), done.stderr


def test_the_number_of_threads_does_not_depend_on_the_cores_and_waiting_threads_sleep():
    threads, settings = torch_in_its_own_process()
    assert threads == 1
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in settings
    assert "GOMP_SPINCOUNT = '0'" in settings


def test_the_users_environment_variables_take_precedence():
    threads, settings = torch_in_its_own_process(OMP_NUM_THREADS="3", OMP_WAIT_POLICY="active")
    assert threads == 3
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in settings
