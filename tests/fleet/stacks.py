"""Fixtures: a stack of tiny real models behind a real gateway, and a cluster's API server."""

import bundles
import cluster
import prometheus
import pytest

from loopline.fleet import configuration, members, stack
from loopline.fleet.gateway import Gateway
from loopline.release import bundle


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with two bundles of the classifier: a champion, and a challenger that answers the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOOPLINE_DECISIONS", str(tmp_path / "decisions.jsonl"))
    (tmp_path / "models/classifier").mkdir(parents=True)
    bundles.classifier(tmp_path / "models/classifier/bundle")
    bundles.classifier(tmp_path / "challenger", code="d" * 64)
    return tmp_path


@pytest.fixture
def up(place):
    """Start the gateway with one champion server and the watchers; the first of the ports."""
    first = prometheus.free_ports(6)
    options = configuration.StackOptions(
        bundles=(place / "models/classifier/bundle",),
        port=first,
        sentinel_port=first + 3,
        prometheus_port=first + 4,
        alertmanager_port=first + 5,
        scrape=1.0,
        sentinel=1.0,
        gateway=True,
    )
    stack.up(options)
    yield first
    stack.down()


@pytest.fixture
def versions(place):
    """Short versions of champion and challenger, as servers report them."""
    return tuple(bundle.version(place / name)[:12] for name in ("models/classifier/bundle", "challenger"))


@pytest.fixture
def gateway(up):
    return Gateway(members.FOLDER)


@pytest.fixture
def api(tmp_path, monkeypatch):
    """The API server of a cluster, for kubectl."""
    server = cluster.Cluster(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(server.config))
    monkeypatch.setenv("HOME", str(tmp_path))  # kubectl caches discovered resources there
    yield server
    server.close()
