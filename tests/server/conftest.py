"""Fixtures for the tests of the server: bundles and server processes."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import bundles
from servers import Process


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Name -> folder of a bundle of each of the three tasks."""
    root = tmp_path_factory.mktemp("bundles")
    all_ = (bundles.classifier(root / "classifier"), bundles.detector(root / "detector"), bundles.text(root / "text"))
    return {bundle.manifest.name: bundle.folder for bundle in all_}


@pytest.fixture(scope="session")
def server(folders):
    """A shared server of all three bundles, for tests that do not change it."""
    process = Process(*folders.values(), "--port", 0)
    yield process
    assert process.stop() == 0
    assert [line for line in process.log if line.get("level") not in ("info", "error")] == [], "a traceback"


@pytest.fixture
def serve():
    """serve(bundle, ..., options) -> a server of the test's own."""
    started = []

    def start(*arguments, **options):
        started.append(Process("--port", 0, *arguments, **options))
        return started[-1]

    yield start
    for process in started:
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait()
            process.reader.join()
