"""What every test shares: no threads fighting for two cores, no window, no usage reports; and the container engine."""

import os

import image
import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import loopline  # noqa: F401 - switches telemetry off before any library is imported

pytest_plugins = ["stacks"]  # a gateway with servers, which three rooms test

# The same cases each time, and no limit on time: the machine may be busy.
settings.register_profile("loopline", derandomize=True, deadline=None)
settings.load_profile("loopline")

# A worker takes one file after the other. These take longest: begun first, none of them is left for the end.
LONGEST = ("test_compose", "test_template", "test_image", "test_rules", "test_stack", "test_rollout", "test_deploy")


def pytest_collection_modifyitems(items):
    """The longest files first; within a file, and between the others, the order stays."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def engine():
    """podman or docker; without one that works the test is skipped, or fails where LOOPLINE_REQUIRE_CONTAINERS=1."""
    found = image.engine()
    if found is None:
        missing = pytest.fail if os.environ.get("LOOPLINE_REQUIRE_CONTAINERS") == "1" else pytest.skip
        missing("no container engine answers: neither podman nor docker")
    return found
