"""Bundles and servers for every test of serving."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import bundles
from servers import Process


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Bundles of the three tasks by name."""
    root = tmp_path_factory.mktemp("bundles")
    made = (bundles.classifier(root / "classifier"), bundles.detector(root / "detector"), bundles.text(root / "text"))
    return {one.manifest.name: one.folder for one in made}


@pytest.fixture(scope="session")
def server(folders):
    """One server of all three, for tests that leave it as it was."""
    process = Process(*folders.values(), "--port", 0)
    yield process
    assert process.stop() == 0
    assert [line for line in process.log if line.get("level") not in ("info", "error")] == [], "a traceback"


@pytest.fixture
def serve():
    """serve(bundle, ..., options) -> a server of one's own."""
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
