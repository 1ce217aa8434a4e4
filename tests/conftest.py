"""What every test shares: no threads fighting for two cores, no window, no usage reports."""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import loopline  # noqa: F401 - switches telemetry off before any library is imported

# The same cases each time, and no limit on time: the machine may be busy.
settings.register_profile("loopline", derandomize=True, deadline=None)
settings.load_profile("loopline")
