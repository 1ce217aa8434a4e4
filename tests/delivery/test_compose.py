"""serving/compose.yaml, started for real under load, with stand-ins for others' images (standins.py); without Grafana and MLflow.

Without podman or docker these are skipped, or fail where LOOPLINE_REQUIRE_CONTAINERS=1 says that there must be one.
"""

import os
import subprocess
import sys
from pathlib import Path

import bundles
import front
import prometheus
import pytest
import standins
import yaml

from loopline.delivery import compose, gateway
from loopline.errors import LooplineError
from loopline.release import decisions, signature

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "serving"))
import image as builder  # noqa: E402 - a script

SERVICES = ("gateway", "alertmanager", "prometheus")
SECRETS = {"POSTGRES_PASSWORD": "of a test", "GRAFANA_ADMIN_PASSWORD": "of a test"}


@pytest.fixture(scope="session")
def engine():
    found = builder.engine()
    if found is None:
        missing = pytest.fail if os.environ.get("LOOPLINE_REQUIRE_CONTAINERS") == "1" else pytest.skip
        missing("no container engine answers: neither podman nor docker")
    return found


@pytest.fixture(scope="session")
def images(engine):
    build = [sys.executable, str(ROOT / "serving/image.py"), "--tag", "localhost/loopline-test", "--no-demo"]
    subprocess.run(build, check=True, capture_output=True, timeout=900)
    return standins.make(engine, SERVICES)


@pytest.fixture
def stack(images, place, monkeypatch):
    """Nothing is up yet; ports of its own."""
    first = prometheus.free_ports(7)
    names = (
        "PORT",
        "METRICS_PORT",
        "BLUE_PORT",
        "GREEN_PORT",
        "CHALLENGER_PORT",
        "PROMETHEUS_PORT",
        "ALERTMANAGER_PORT",
    )
    for number, name in enumerate(names):
        monkeypatch.setenv(f"LOOPLINE_{name}", str(first + number))
    for name, value in {**SECRETS, "LOOPLINE_IMAGE": "localhost/loopline-test:latest"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOOPLINE_COMPOSE", " ".join([*compose.engine(), "--project-name", "loopline-test"]))
    made = compose.Compose(services=SERVICES, share=50)
    yield made
    made.down()


def test_versions_come_and_go_under_load_and_no_request_is_lost(stack, place, versions):
    old, new = versions
    first, second = place / "models/classifier/bundle", place / "challenger"
    port = int(os.environ["LOOPLINE_PORT"])
    assert "blue serves" in stack.deploy([first])[0]
    assert "nothing to do" in stack.deploy([first])[0]
    with front.sending(port) as sender:
        stack.canary([second])
        prometheus.eventually(lambda: set(sender.since(sender.more(50))) == {old, new})
        stack.rollback(None)
        prometheus.eventually(lambda: set(sender.since(sender.more(50))) == {old})
        assert "green serves" in stack.deploy([second])[0]
        assert set(sender.since(sender.more())) == {new}
        assert stack.verify([second]) == []
        assert f"bundle {new} is served, {old} is asked for" in stack.verify([first])[0]
        bundles.classifier(place / "wrong", threshold=10.0, code="f" * 64)
        stack.canary([first])
        with pytest.raises(LooplineError, match="golden input 0: different"):
            stack.deploy([place / "wrong"])
        assert stack.read().share == 0, "a canary ends before its place is taken"
        assert set(sender.since(sender.more())) == {new}
        stack.rollback(None)
        assert set(sender.since(sender.more())) == {old}
    assert {version for _, version, _ in sender.answers} == {old, new}, "the wrong one was never asked"
    assert [record.action for record in decisions.read().records] == ["promote", "promote", "rollback"]
    url = f"http://127.0.0.1:{os.environ['LOOPLINE_PROMETHEUS_PORT']}"
    prometheus.eventually(lambda: prometheus.query(url, 'up{job="loopline", lane="champion"} == 1'))
    prometheus.eventually(lambda: prometheus.query(url, 'up{job="gateway"} == 1'))


@pytest.mark.parametrize("missing", SECRETS)
def test_without_its_secrets_nothing_starts(place, monkeypatch, missing):
    for name in SECRETS:
        monkeypatch.setenv(name, "" if name == missing else "given")
    with pytest.raises(LooplineError, match=f"{missing} must be set"):
        compose.Compose().deploy([place / "challenger"])
    assert compose.Compose().read() == compose.State()


def services():
    return yaml.safe_load((ROOT / "serving/compose.yaml").read_text())["services"]


@pytest.mark.parametrize("name", services())
def test_every_container_is_locked_down_and_heard_on_this_machine_alone(name):
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "privileged" not in service and "cap_add" not in service
    kind, _, tag = service["image"].rpartition(":")
    assert "LOOPLINE" in kind or tag.lstrip("v").count(".") >= 1, "an exact version"


def test_the_file_holds_no_secret_and_an_empty_one_stops_it():
    values = [
        str(v) for one in services().values() for k, v in (one.get("environment") or {}).items() if "PASSWORD" in k
    ]
    assert len(values) == 3
    assert all(value.startswith("${") and ":?" in value for value in values)


def test_the_gateway_in_containers_is_the_one_of_processes():
    text = gateway.containers("/etc/loopline")
    for line in ("option http-buffer-request", "use_backend challenger if to_challenger", "retry-on conn-failure"):
        assert line in text
    assert "server blue blue:8080 check" in text


def test_a_containers_folder_gets_the_signatures_and_nothing_of_the_release_before(tmp_path):
    one = bundles.classifier(tmp_path / "one").folder
    signature.beside(one).write_text("signed")
    stack = compose.Compose(folder=tmp_path / "compose")
    stack._fill("blue", {"classifier": str(one)})
    assert signature.beside(tmp_path / "compose/blue/classifier").read_text() == "signed"
    signature.beside(one).unlink()
    stack._fill("blue", {"text": str(one)})
    assert [path.name for path in (tmp_path / "compose/blue").iterdir()] == ["text"]
