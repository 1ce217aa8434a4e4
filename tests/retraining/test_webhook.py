"""The retrainer as a process, driven by real HTTP: authentication, decisions, and one run for each alert."""

import random
import subprocess
import sys
import threading
import time
from collections import Counter

import journals
import prometheus
import pytest
import retrainers
from retrainers import Retrainer, alert, bearer, signed, webhook

from loopline.journal.collector import Collector
from loopline.retraining import alerts

pytestmark = prometheus.needed
RULES = "groups: []\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A Prometheus that scrapes metrics which a test sets."""
    target = prometheus.Target()
    server = prometheus.Prometheus(tmp_path_factory.mktemp("prometheus"), [target.address], RULES, every="2s")
    yield server, target
    server.close()
    target.close()


@pytest.fixture
def retrain(tmp_path, world):
    """retrain(values of metrics, policy) -> a running retrainer whose Prometheus has these values; `version` is the bundle's."""
    server, target = world
    version = retrainers.project(tmp_path)
    started = []

    def start(*, tell=True, steps=retrainers.WORK, policy=None, **values):
        target.text = retrainers.metrics(version, **values) if tell else ""
        if tell:
            expected = {(row.split("{")[0], row.split()[-1]) for row in target.text.splitlines() if "loopline:" in row}
            query = f'{{__name__=~"loopline:.*",version="{version}"}}'
            prometheus.eventually(
                lambda: (
                    expected == {(row["__name__"], f"{value:g}") for row, value in server.query(query)}
                    or expected == {(row["__name__"], str(value)) for row, value in server.query(query)}
                )
            )
            firing = set(values.get("alerts", ()))
            prometheus.eventually(lambda: {row["alertname"] for row, _ in server.query("ALERTS")} == firing or None)
        started.append(Retrainer(tmp_path, server.url, steps, **(policy or {})))
        started[-1].version = version
        return started[-1].start()

    yield start
    for retrainer in started:
        retrainer.close()


def decided(retrainer, action, seconds=60):
    return prometheus.eventually(lambda: [r for a, r in retrainer.decisions() if a == action], seconds)[0]


def test_a_firing_alert_of_harmful_drift_causes_one_run_and_two_lines_in_the_log(retrain):
    retrainer = retrain()
    retrainer.send(alert(retrainer.version))
    (run,) = prometheus.eventually(retrainer.ended)
    assert run.result == "succeeded"
    assert retrainer.started() == [run.id]
    prometheus.eventually(lambda: [action for action, _ in retrainer.decisions()] == ["retrain", "retrain-succeeded"])
    exported = retrainer.ask("GET", "/metrics")[1]
    assert 'loopline_retrain_runs_total{model="classifier",result="succeeded"} 1.0' in exported
    assert 'loopline_retrain_decisions_total{decision="retrain",model="classifier"} 1.0' in exported
    assert "loopline_retrain_running 0.0" in exported
    retrainer.send(alert(retrainer.version))
    retrainer.send(alert(retrainer.version, status="resolved"))
    retrainer.send(alert(retrainer.version, fingerprint="fedcba9876543210"))
    # The last alert waits. The earlier ones were looked at before, since the oldest comes first.
    decided(retrainer, "wait")
    assert [action for action, _ in retrainer.decisions()] == ["retrain", "retrain-succeeded", "wait"]
    assert len(retrainer.runs()) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alerts": ["ConstantInputs"]}, "bad data: ConstantInputs fires"),
        ({"alerts": ["Skew"]}, "skew: the model does not answer as it did in training"),
        ({"loss": 0.01}, "a harmless shift"),
        ({"score": 0.5, "loss": 0.0}, "the drift is over"),
    ],
)
def test_an_alert_that_new_data_cannot_mend_is_declined(retrain, values, words):
    retrainer = retrain(**values)
    retrainer.send(alert(retrainer.version))
    assert words in decided(retrainer, "decline")
    assert retrainer.runs() == []


def test_a_notice_starts_no_retraining(retrain):
    retrainer = retrain(loss=0.01)
    retrainer.send(alert(retrainer.version, name="DriftNotice", severity="notice"))
    assert "DriftNotice is a notice" in decided(retrainer, "decline")


def test_two_alerts_at_once_cause_one_run(retrain):
    retrainer = retrain()
    retrainer.send(alert(retrainer.version), alert(retrainer.version, fingerprint="fedcba9876543210"))
    assert "cool-down" in decided(retrainer, "wait")
    assert len(retrainer.runs()) == 1
    assert len(retrainer.started()) == 1


def test_an_alert_waits_while_prometheus_is_away(retrain, world):
    retrainer = retrain()
    retrainer.close()
    retrainer.url = f"http://127.0.0.1:{prometheus.free_port()}"
    retrainer.start().send(alert(retrainer.version))
    assert "the model's state is unknown" in decided(retrainer, "wait")
    assert retrainer.runs() == []
    retrainer.close()
    retrainer.url = world[0].url
    retrainer.start()
    assert prometheus.eventually(retrainer.ended)[0].result == "succeeded"


def test_too_few_labels_lead_to_a_request_and_later_to_a_decline(retrain):
    retrainer = retrain(policy={"labels": {"total": 5, "per_class": 1}, "patience_hours": 0.003})
    retrainer.send(alert(retrainer.version))
    assert "0 new labels, 5 are needed" in decided(retrainer, "ask-labels")
    assert "the alert has waited for over" in decided(retrainer, "decline")
    assert retrainer.runs() == []


def test_labels_that_arrive_in_the_journal_let_the_run_start(retrain, tmp_path):
    journal = tmp_path / ".loopline/journal"
    retrainer = retrain(policy={"labels": {"total": 4, "per_class": 2}})
    retrainer.send(alert(retrainer.version))
    assert "each class needs 2 new labels; these have too few: bright 0, dark 0" in decided(retrainer, "ask-labels")
    lines = [journals.entry(str(number)) for number in range(4)]
    lines += [journals.label(str(number), ("bright", "dark")[number % 2]) for number in range(4)]
    journal.mkdir(parents=True)
    journals.write(journal, *lines)
    collector = Collector(journal)
    collector.round()
    collector.close()
    assert prometheus.eventually(retrainer.ended)[0].result == "succeeded"


def test_a_run_waits_for_the_end_of_a_pause_and_for_approval(retrain):
    retrainer = retrain(policy={"approval": True})
    assert loopline(retrainer, "pause", "holiday").returncode == 0
    retrainer.send(alert(retrainer.version))
    assert "kill switch is on: holiday" in decided(retrainer, "wait")
    assert "paused: holiday" in loopline(retrainer, "status").stdout
    assert loopline(retrainer, "resume").returncode == 0
    decided(retrainer, "await-approval")
    id_ = next(
        line.split()[0] for line in loopline(retrainer, "status").stdout.splitlines() if "await-approval" in line
    )
    assert loopline(retrainer, "approve", id_).returncode == 0
    (run,) = prometheus.eventually(retrainer.ended)
    assert run.id == id_
    assert "no alert" in loopline(retrainer, "approve", id_).stderr


def loopline(retrainer, *arguments):
    command = [sys.executable, "-m", "loopline.cli", "retrainer", *arguments]
    return subprocess.run(command, cwd=retrainer.folder, capture_output=True, text=True)


def test_a_step_s_exit_code_fails_or_refuses_the_run(retrain):
    retrainer = retrain(
        steps=[{"name": "weigh", "run": "/bin/sh -c 'echo worse; exit 2'", "at": "repository"}],
        policy={"cooldown_hours": 0},
    )
    retrainer.send(alert(retrainer.version))
    assert "step weigh refused the candidate" in decided(retrainer, "retrain-refused")
    retrainer.close()
    (retrainer.folder / "policy.yaml").write_text(
        (retrainer.folder / "policy.yaml").read_text().replace("exit 2", "exit 3")
    )
    retrainer.start()
    retrainer.send(alert(retrainer.version, fingerprint="fedcba9876543210"))
    reason = decided(retrainer, "retrain-failed")
    assert "step weigh ended with exit code 3" in reason
    assert "worse" in reason
    assert 'loopline_retrain_runs_total{model="classifier",result="failed"} 1.0' in retrainer.ask("GET", "/metrics")[1]


def test_a_run_that_exceeds_its_time_is_ended_and_fails(retrain):
    steps = [{"name": "sleep", "run": "/bin/sh -c 'sleep 600'", "at": "repository"}]
    retrainer = retrain(steps=steps, policy={"timeout_minutes": 0.02})
    retrainer.send(alert(retrainer.version))
    assert "exceeded the run's time" in decided(retrainer, "retrain-failed")


# Authentication


def test_forged_replayed_oversized_and_malformed_webhooks_are_refused(retrain):
    retrainer = retrain(tell=False)
    body = webhook(alert(retrainer.version))
    refused = {
        "no token": ("/alertmanager", body, {}, 401),
        "a wrong token": ("/alertmanager", body, bearer("wrong"), 401),
        "the secret as a token": ("/alertmanager", body, bearer(retrainers.SECRET), 401),
        "the token alone": ("/alertmanager", body, {"Authorization": retrainers.TOKEN}, 401),
        "no signature": ("/grafana", body, {}, 401),
        "the token on Grafana's route": ("/grafana", body, bearer(), 401),
        "another secret": ("/grafana", body, signed(body, secret="another secret of theirs"), 401),
        "another body": ("/grafana", body + b" ", signed(body), 401),
        "an old stamp": ("/grafana", body, signed(body, at=time.time() - alerts.STALE - 60), 401),
        "a stamp to come": ("/grafana", body, signed(body, at=time.time() + alerts.STALE + 60), 401),
        "a stamp of letters": ("/grafana", body, signed(body) | {"X-Grafana-Alerting-Timestamp": "now"}, 401),
        "too large": ("/alertmanager", b" " * (alerts.LARGEST + 1), bearer(), 413),
        "no JSON": ("/alertmanager", b"{", bearer(), 400),
        "not UTF-8": ("/alertmanager", b'{"alerts": "\xff"}', bearer(), 400),
        "another shape": ("/alertmanager", b'{"alerts": {}}', bearer(), 400),
        "too many": ("/alertmanager", webhook(*[alert(retrainer.version)] * (alerts.MOST + 1)), bearer(), 400),
        "a start that is none": ("/alertmanager", webhook(alert() | {"startsAt": "soon"}), bearer(), 400),
        "a fingerprint that is none": ("/alertmanager", webhook(alert(fingerprint="../../x")), bearer(), 400),
    }
    answers = {
        name: retrainer.ask("POST", path, sent, headers)[0] for name, (path, sent, headers, _) in refused.items()
    }
    assert answers == {name: code for name, (*_, code) in refused.items()}
    assert retrainer.ask("GET", "/alertmanager")[0] == 405
    store = retrainer.store()
    assert store.alerts() == []

    headers = signed(body)
    assert retrainer.ask("POST", "/grafana", body, headers)[0] == 202
    assert retrainer.ask("POST", "/grafana", body, headers)[0] == 401, "a replay"
    assert [row.source for row in store.alerts()] == ["grafana"]
    retrainer.send(
        alert(retrainer.version, model="unknown"), alert(retrainer.version, model="../../etc", fingerprint="1" * 16)
    )
    assert len(store.alerts()) == 1, "alerts on unknown models are ignored"
    store.close()


def test_a_body_of_undeclared_length_over_the_limit_is_refused(retrain):
    retrainer = retrain(tell=False)
    parts = (b" " * 65536 for _ in range(8))
    assert retrainer.ask("POST", "/alertmanager", parts, bearer())[0] == 413


def test_the_retrainer_does_not_start_without_a_token(tmp_path, monkeypatch):
    retrainers.project(tmp_path)
    retrainer = Retrainer(tmp_path)
    monkeypatch.delenv("LOOPLINE_RETRAINER_TOKEN", raising=False)
    done = loopline(retrainer, "--policy", "policy.yaml")
    assert done.returncode == 1
    assert "set LOOPLINE_RETRAINER_TOKEN" in done.stderr
    monkeypatch.setenv("LOOPLINE_RETRAINER_TOKEN", "short")
    assert "at least 16" in loopline(retrainer, "--policy", "policy.yaml").stderr
    monkeypatch.delenv("LOOPLINE_RETRAINER_TOKEN")
    monkeypatch.setenv("LOOPLINE_RETRAINER_TOKEN_FILE", str(tmp_path / "none"))
    assert "cannot be read" in loopline(retrainer, "--policy", "policy.yaml").stderr
    monkeypatch.delenv("LOOPLINE_RETRAINER_TOKEN_FILE")
    monkeypatch.setenv("LOOPLINE_RETRAINER_TOKEN", " \n")
    assert "LOOPLINE_RETRAINER_TOKEN is blank" in loopline(retrainer, "--policy", "policy.yaml").stderr


def test_secrets_are_read_without_white_space_and_the_scheme_in_any_case(monkeypatch):
    monkeypatch.setenv("LOOPLINE_RETRAINER_TOKEN", "0123456789abcdef\n")
    monkeypatch.setenv("LOOPLINE_RETRAINER_HMAC_SECRET", " fedcba9876543210\r\n")
    secrets = alerts.secrets()
    assert secrets == alerts.Secrets("0123456789abcdef", "fedcba9876543210")
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert alerts.bearer(f"{scheme} 0123456789abcdef", secrets.token)
    for header in (None, "", "0123456789abcdef", "Bearer 0123456789abcde", "Basic 0123456789abcdef"):
        assert not alerts.bearer(header, secrets.token)
    assert not alerts.bearer("Bearer ", None)


def test_a_second_retrainer_on_the_same_state_is_refused(retrain):
    retrainer = retrain(tell=False)
    second = Retrainer(retrainer.folder)
    with pytest.raises(AssertionError, match="another retrainer works in"):
        second.start()


# Many webhooks at once, and kills at any moment


def test_a_storm_of_a_thousand_webhooks_causes_one_run_and_no_server_error(retrain):
    retrainer = retrain()
    version = retrainer.version
    genuine, first = webhook(alert(version)), signed(webhook(alert(version)))
    dice = random.Random(0)
    kinds = {
        "duplicate": lambda _: ("/alertmanager", genuine, bearer(), {202}),
        "resigned": lambda n: ("/grafana", genuine + b" " * (n + 1), signed(genuine + b" " * (n + 1)), {202}),
        "replayed": lambda _: ("/grafana", genuine, first, {202, 401}),
        "resolved": lambda _: ("/alertmanager", webhook(alert(version, fingerprint="a" * 16, status="resolved")), bearer(), {202}),
        "forged": lambda n: ("/alertmanager", webhook(alert(version, fingerprint=f"{n:016x}")), bearer(f"guess{n}"), {401}),
        "forged signature": lambda n: ("/grafana", webhook(alert(version, fingerprint=f"{n:016x}")), signed(b""), {401}),
        "malformed": lambda _: ("/alertmanager", dice.randbytes(dice.randrange(300)), bearer(), {400}),
        "cut short": lambda n: ("/alertmanager", genuine[: n % len(genuine)], bearer(), {400}),
        "oversized": lambda n: ("/alertmanager", b"x" * (alerts.LARGEST + n + 1), bearer(), {413}),
    }  # fmt: skip
    sent = [(kind, number) for number in range(112) for kind in kinds]
    dice.shuffle(sent)
    answers, wrong, lock = Counter(), [], threading.Lock()

    def send(part):
        for kind, number in part:
            path, body, headers, expected = kinds[kind](number)
            status, text = retrainer.ask("POST", path, body, headers)
            with lock:
                answers[kind, status] += 1
                if status not in expected:
                    wrong.append((kind, number, status, text))

    threads = [threading.Thread(target=send, args=(sent[start::8],)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.total() == 1008
    assert wrong == []
    assert answers["replayed", 202] == 1
    (run,) = prometheus.eventually(retrainer.ended)
    assert run.result == "succeeded"
    assert retrainer.started() == [run.id]
    assert retrainer.ask("GET", "/healthz")[0] == 200
    store = retrainer.store()
    assert {row.id for row in store.alerts()} == {run.id}, "no forged alert was stored"
    store.close()
    actions = Counter(action for action, _ in retrainer.decisions())
    assert actions == {"retrain": 1, "retrain-succeeded": 1}


@pytest.mark.parametrize("seed", range(3))
def test_kills_at_any_moment_still_give_one_run_and_each_decision_once(retrain, seed):
    dice = random.Random(seed)
    steps = [
        {"name": name, "run": f"/bin/sh -c 'sleep 0.15; echo {name} >> {{repository}}/done'", "at": "repository"}
        for name in ("first", "second", "third")
    ]
    retrainer = retrain(steps=steps)
    retrainer.send(alert(retrainer.version))
    for _ in range(6):
        time.sleep(dice.uniform(0, 0.5))
        dice.choice([retrainer.kill, retrainer.kill, retrainer.close])()
        retrainer.start()
        retrainer.send(alert(retrainer.version))
    (run,) = prometheus.eventually(retrainer.ended)
    assert run.result == "succeeded"
    prometheus.eventually(lambda: len(retrainer.decisions()) == 2)
    assert [action for action, _ in retrainer.decisions()] == ["retrain", "retrain-succeeded"]
    done = (retrainer.folder / "done").read_text().split()
    assert list(dict.fromkeys(done)) == ["first", "second", "third"], "in order, and none is left out"
    assert done == sorted(done, key=["first", "second", "third"].index), "no earlier step is done again"


def test_the_webhook_server_does_not_need_pillow():
    """The retrainer's container has no Pillow, since nothing in it reads an image."""
    code = "import sys; sys.modules['PIL'] = None; from loopline.retraining import webhook"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
