"""What every test shares: no threads fighting for two cores, no window, no usage reports; and the container engine."""

import os

import image
import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import loopline  # noqa: F401 - switches telemetry off before any library is imported

# The same cases each time, and no limit on time: the machine may be busy.
settings.register_profile("loopline", derandomize=True, deadline=None)
settings.load_profile("loopline")


@pytest.fixture(scope="session")
def engine():
    """podman or docker; without one that works the test is skipped, or fails where LOOPLINE_REQUIRE_CONTAINERS=1."""
    found = image.engine()
    if found is None:
        missing = pytest.fail if os.environ.get("LOOPLINE_REQUIRE_CONTAINERS") == "1" else pytest.skip
        missing("no container engine answers: neither podman nor docker")
    return found
