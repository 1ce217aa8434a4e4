"""serving/compose.yaml, run in containers under load, with stand-ins for external images (standins.py), without Grafana and MLflow.

Without podman or docker these tests are skipped, or fail if LOOPLINE_REQUIRE_CONTAINERS=1.
"""

import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import brightness
import bundles
import front
import prometheus
import pytest
import standins
import yaml

from loopline import cli
from loopline.cli import deploy
from loopline.deploy import compose, compose_gateway
from loopline.errors import LooplineError
from loopline.fleet import gateway
from loopline.release import decisions, signature
from loopline.rollout.judge import RolloutPolicy
from loopline.rollout.state import RolloutPlan

ROOT = Path(__file__).parents[2]

OTHERS = ("gateway", "alertmanager", "prometheus")
SERVICES = (*OTHERS, *compose.WATCHERS)
SECRETS = dict.fromkeys(compose.SECRETS, "a password of a test")
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="session")
def images(engine):
    build = [sys.executable, str(ROOT / "serving/image.py"), "--tag", "localhost/loopline-test-compose", "--no-demo"]
    subprocess.run(build, check=True, capture_output=True, timeout=900)
    standins.operations(engine, "localhost/loopline-operations-test")
    return standins.make(engine, OTHERS)


@pytest.fixture
def stack(images, place, monkeypatch):
    """The stack on ports of its own, with nothing up yet."""
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
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOOPLINE_IMAGE", "localhost/loopline-test-compose:latest")
    monkeypatch.setenv("LOOPLINE_OPERATIONS_IMAGE", "localhost/loopline-operations-test:latest")
    monkeypatch.setenv("LOOPLINE_GITHUB_TOKEN", "of a test")
    monkeypatch.setenv("LOOPLINE_COMPOSE", " ".join([*compose.engine(), "--project-name", "loopline-test"]))
    stack = compose.Compose(services=SERVICES, share=50, policy=policy(place, "github"), scrape=1.0)
    yield stack
    stack._compose("down", "--volumes")


def policy(place, where):
    """The repository's policy with another `where`."""
    content = yaml.safe_load((ROOT / "monitoring/retraining.yaml").read_text())
    path = place / "retraining.yaml"
    path.write_text(yaml.safe_dump(content | {"where": where, "github": {"repository": "owner/name"}}))
    return path


def post(port, path, body, **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{os.environ[port]}{path}", body, headers, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status in (200, 202)


def recorded(query):
    return prometheus.query(f"http://127.0.0.1:{os.environ['LOOPLINE_PROMETHEUS_PORT']}", query)


def labelled():
    """Send requests and labels until a label met a kept sample (a tenth is kept at random); the prefix of their ids."""
    name = str(uuid.uuid4())

    def some():
        for number in range(20):
            identity = {"X-Request-Id": f"{name}.{number}"}
            post("LOOPLINE_PORT", "/predict/classifier", brightness.png(200), **identity)
            label = {"id": identity["X-Request-Id"], "label": "bright", "source": "a test"}
            post("LOOPLINE_PORT", "/v2/models/classifier/feedback", json.dumps(label).encode())
        return recorded("loopline_labelled_rows_total > 0")

    prometheus.eventually(some)
    return name


def decided(stack):
    """The retrainer's last decision, once it has read Prometheus, the champion's bundle and the journal; else None."""
    with suppress(LooplineError):  # no decision yet, no file
        text = stack._compose("exec", "-T", "retrainer", "cat", ".loopline/decisions.jsonl")
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        if lines and "state is unknown" not in "".join(lines[-1]["reasons"]):
            return lines[-1]
    return None


def kept(stack):
    """Ids in the journal's Parquet files."""
    read = (
        "import glob, pyarrow.parquet as p\n"
        "print([p.read_table(path)['id'].to_pylist() for path in glob.glob('/journal/parts/*.parquet')])"
    )
    return stack._compose("exec", "-T", "journal", "python3", "-c", read)


def stopping(stack):
    """Stop the challenger once it has answered clients. SIGKILL could lose an answer, so it is a normal stop."""
    answered = 'sum(loopline_requests_total{lane="challenger",route="predict"}) > 0'
    prometheus.eventually(lambda: stack.read().share and recorded(answered), 120)
    stack._compose("stop", "challenger")


def test_versions_come_and_go_under_load_and_no_request_is_lost(stack, place, versions):
    old, new = versions
    first, second = place / "models/classifier/bundle", place / "challenger"
    port = int(os.environ["LOOPLINE_PORT"])
    assert "blue serves" in stack.deploy([first])[0]
    assert "nothing to do" in stack.deploy([first])[0]
    name = labelled()
    judged = replace(
        stack, plan=RolloutPlan(every=0.2, hold=120, policy=RolloutPolicy(requests=100, points=4, slower=9.0))
    )
    with front.sending(port) as sender:
        stopped = threading.Thread(target=stopping, args=(stack,))
        stopped.start()
        with pytest.raises(LooplineError, match=r"(?s)did not pass.*(reports the challenger down|had to answer)"):
            replace(
                judged, plan=replace(judged.plan, policy=RolloutPolicy(requests=10**9, points=4, slower=9.0))
            ).canary([second])
        stopped.join()
        assert stack.read().share == 0
        assert "the canary passed" in judged.canary([second])[1]
        assert set(sender.since(sender.more(50))) == {old, new}
        stack.rollback(None)
        prometheus.eventually(lambda: set(sender.since(sender.more(50))) == {old})
        assert "green serves" in stack.deploy([second])[0]
        assert set(sender.since(sender.more())) == {new}
        assert stack.verify([second]) == []
        assert f"bundle {new} is served, {old} is expected" in stack.verify([first])[0]
        bundles.classifier(place / "wrong", threshold=10.0, code="f" * 64)
        stack.canary([first])
        with pytest.raises(LooplineError, match="golden input 0: different"):
            stack.deploy([place / "wrong"])
        assert stack.read().share == 0, "the canary ends before the next trial"
        assert set(sender.since(sender.more())) == {new}
        stack.rollback(None)
        assert set(sender.since(sender.more())) == {old}
    assert {version for _, version, _ in sender.answers} == {old, new}, "the wrong bundle never answered"
    actions = [record.action for record in decisions.read().records]
    assert actions == ["promote", "rollback", "canary", "promote", "rollback"]
    prometheus.eventually(lambda: recorded('up{job="loopline", lane="champion"} == 1'))
    prometheus.eventually(lambda: recorded('up{job="gateway"} == 1'))
    watched = f'loopline_sentinel_checks_total{{version="{old}", result="same"}} > 0'
    prometheus.eventually(lambda: recorded(watched) and recorded('up{job="sentinel"} == 1'), 300)
    alert = {"alertname": "RetrainCandidate", "severity": "retrain", "model": "classifier", "version": old}
    post("LOOPLINE_ALERTMANAGER_PORT", "/api/v2/alerts", json.dumps([{"labels": alert}]).encode(), **JSON)
    decision = prometheus.eventually(lambda: decided(stack), 300)
    assert (decision["model"], decision["bundle"]) == ("classifier", old)
    # The traffic decides which: its brightness drifts now and then, and the model is as good on it.
    why = {"decline": ("the drift is over", "a harmless shift"), "ask-labels": ("new labels",)}
    assert any(reason in "".join(decision["reasons"]) for reason in why[decision["action"]])
    prometheus.eventually(lambda: recorded("sum(loopline_retrain_decisions_total) > 0"))
    prometheus.eventually(lambda: name in kept(stack), 300)
    stack.down()
    assert stack.read() == compose.ComposeState(), "nothing serves"
    with pytest.raises(OSError):
        post("LOOPLINE_PORT", "/predict/classifier", brightness.png(200))


@pytest.mark.parametrize("missing", SECRETS)
def test_without_its_secrets_nothing_starts(place, monkeypatch, missing):
    for name in SECRETS:
        monkeypatch.setenv(name, "" if name == missing else "a value")
    with pytest.raises(LooplineError, match=f"{missing} must be set"):
        compose.Compose().deploy([place / "challenger"])
    assert compose.Compose().read() == compose.ComposeState()


def services():
    return yaml.safe_load((ROOT / "serving/compose.yaml").read_text())["services"]


@pytest.mark.parametrize("name", services())
def test_every_container_is_locked_down_and_listens_on_this_machine_only(name):
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "privileged" not in service and "cap_add" not in service
    kind, _, tag = service["image"].rpartition(":")
    assert "LOOPLINE" in kind or tag.lstrip("v").count(".") >= 1, "an exact version"


def test_every_port_that_is_asked_has_the_default_of_the_file(monkeypatch):
    """`make canary TARGET=compose ARGS=--wait` asks Prometheus, whose port is seldom set."""
    text = (Path(__file__).parents[2] / "serving/compose.yaml").read_text(encoding="utf-8")
    defaults = {name: int(port) for name, port in re.findall(r"\$\{(LOOPLINE_\w*PORT):-(\d+)\}", text)}
    source = "".join(path.read_text(encoding="utf-8") for path in Path(compose.__file__).parent.glob("compose*.py"))
    asked = set(re.findall(r"url\(\"(LOOPLINE_\w*PORT)\"\)", source))
    assert len(asked) >= 3
    for port in asked:
        monkeypatch.delenv(port, raising=False)
        assert compose_gateway.url(port) == f"http://127.0.0.1:{defaults[port]}"


def test_the_file_contains_no_secret_and_an_empty_secret_stops_it():
    variables = [pair for service in services().values() for pair in (service.get("environment") or {}).items()]
    values = [str(value) for name, value in variables if "PASSWORD" in name or "TOKEN" in name]
    assert all(value.startswith("${") for value in values)
    assert {value[2:].partition(":?")[0] for value in values if ":?" in value} == set(compose.SECRETS)


def chosen(*arguments):
    return deploy._services(cli.parser().parse_args(["deploy", "--target", "compose", *map(str, arguments)]))


def test_a_retrainer_that_trains_here_stays_out_of_the_containers_and_the_user_is_told(place, capsys):
    assert chosen("--policy", policy(place, "github")) == compose.SERVICES
    here = policy(place, "here")
    assert set(compose.SERVICES) - set(chosen("--policy", here)) == {"retrainer"}
    assert "`make retrainer`" in capsys.readouterr().out
    with pytest.raises(LooplineError, match="which needs a clone"):
        chosen("--policy", here, "--services", "retrainer")
    assert chosen("--policy", here, "--services", "gateway") == ("gateway",)


def alertmanager(folder):
    return yaml.safe_load((folder / "alertmanager/alertmanager.yml").read_text())["receivers"]


def test_alertmanager_has_the_retrainers_address_and_token_only_if_there_is_a_retrainer(tmp_path):
    stack = compose.Compose(folder=tmp_path / "compose")
    stack._configure()
    receivers = {receiver["name"]: receiver for receiver in alertmanager(stack.folder)}
    (hook,) = receivers["retrainer"]["webhook_configs"]
    assert hook["url"] == "http://retrainer:9095/alertmanager"
    assert hook["http_config"]["authorization"]["credentials_file"] == "/etc/loopline/token"
    assert stack.folder.stat().st_mode & 0o077 == 0, "other users of this machine cannot enter the folder"
    compose.Compose(folder=stack.folder, services=OTHERS)._configure()
    assert [receiver["name"] for receiver in alertmanager(stack.folder)] == ["team"]


def test_the_gateway_in_containers_has_the_configuration_of_the_local_one():
    text = gateway.containers("/etc/loopline")
    for line in ("option http-buffer-request", "use_backend challenger if to_challenger", "retry-on conn-failure"):
        assert line in text
    assert "server blue blue:8080 check" in text


def test_a_containers_folder_gets_the_signatures_and_keeps_nothing_of_the_former_release(tmp_path):
    folder = bundles.classifier(tmp_path / "one").folder
    signature.beside(folder).write_text("signed")
    stack = compose.Compose(folder=tmp_path / "compose")
    stack._fill("blue", {"classifier": str(folder)})
    assert signature.beside(tmp_path / "compose/blue/classifier").read_text() == "signed"
    signature.beside(folder).unlink()
    stack._fill("blue", {"text": str(folder)})
    assert [path.name for path in (tmp_path / "compose/blue").iterdir()] == ["text"]
