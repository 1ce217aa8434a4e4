"""Which server is judged: `pytest tests/conformance --url http://host:port`, any server of the protocol; without it one of our own."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))


def pytest_addoption(parser):
    parser.addoption("--url", help="a server of the Open Inference Protocol v2, e.g. http://127.0.0.1:8080")
    parser.addoption("--model", action="append", help="a model to ask; default: all that the server's index lists")


@pytest.fixture(scope="session")
def url(request, tmp_path_factory):
    given = request.config.getoption("--url", default=None)
    if given:
        yield given.rstrip("/")
        return
    import bundles
    from servers import Process

    root = tmp_path_factory.mktemp("bundles")
    made = [getattr(bundles, name)(root / name).folder for name in ("classifier", "detector", "text")]
    server = Process("--port", 0, *made)
    yield server.url
    server.stop()
