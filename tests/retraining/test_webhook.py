"""The retrainer as a process, told by real HTTP: who it believes, what it decides on, and that one alert is one run."""

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
    """A Prometheus that repeats what a test lets it say."""
    target = prometheus.Target()
    server = prometheus.Prometheus(tmp_path_factory.mktemp("prometheus"), [target.address], RULES)
    yield server, target
    server.close()
    target.close()


@pytest.fixture
def retrain(tmp_path, world):
    """retrain(said, policy) -> a retrainer that runs, whose Prometheus says so; `version` is the bundle's."""
    server, target = world
    version = retrainers.project(tmp_path)
    made = []

    def start(*, tell=True, steps=retrainers.WORK, policy=None, **said):
        target.text = retrainers.said(version, **said) if tell else ""
        if tell:
            wanted = {(row.split("{")[0], row.split()[-1]) for row in target.text.splitlines() if "loopline:" in row}
            now = f'{{__name__=~"loopline:.*",version="{version}"}}'
            prometheus.eventually(
                lambda: (
                    wanted == {(row["__name__"], f"{value:g}") for row, value in server.query(now)}
                    or wanted == {(row["__name__"], str(value)) for row, value in server.query(now)}
                )
            )
            firing = set(said.get("alerts", ()))
            prometheus.eventually(lambda: {row["alertname"] for row, _ in server.query("ALERTS")} == firing or None)
        made.append(Retrainer(tmp_path, server.url, steps, **(policy or {})))
        made[-1].version = version
        return made[-1].start()

    yield start
    for one in made:
        one.close()


def decided(one, action, seconds=60):
    return prometheus.eventually(lambda: [r for a, r in one.decisions() if a == action], seconds)[0]


def test_a_firing_alert_of_harmful_drift_is_one_run_and_two_lines_in_the_log(retrain):
    one = retrain()
    one.tell(alert(one.version))
    (run,) = prometheus.eventually(one.ended)
    assert run.result == "succeeded"
    assert one.started() == [run.id]
    prometheus.eventually(lambda: [action for action, _ in one.decisions()] == ["retrain", "retrain-succeeded"])
    exported = one.ask("GET", "/metrics")[1]
    assert 'loopline_retrain_runs_total{model="classifier",result="succeeded"} 1.0' in exported
    assert 'loopline_retrain_decisions_total{decision="retrain",model="classifier"} 1.0' in exported
    assert "loopline_retrain_running 0.0" in exported
    one.tell(alert(one.version))
    one.tell(alert(one.version, status="resolved"))
    one.tell(alert(one.version, fingerprint="fedcba9876543210"))
    decided(one, "wait")  # on the last one: those before it were looked at, the oldest comes first
    assert [action for action, _ in one.decisions()] == ["retrain", "retrain-succeeded", "wait"]
    assert len(one.runs()) == 1


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"alerts": ["ConstantInputs"]}, "bad data: ConstantInputs fires"),
        ({"alerts": ["Skew"]}, "skew: the model does not answer as it did in training"),
        ({"loss": 0.01}, "a harmless shift"),
        ({"score": 0.5, "loss": 0.0}, "the drift is over"),
    ],
)
def test_what_new_data_cannot_mend_is_declined(retrain, said, words):
    one = retrain(**said)
    one.tell(alert(one.version))
    assert words in decided(one, "decline")
    assert one.runs() == []


def test_a_notice_stays_one(retrain):
    one = retrain(loss=0.01)
    one.tell(alert(one.version, name="DriftNotice", severity="notice"))
    assert "DriftNotice is a notice" in decided(one, "decline")


def test_two_alerts_at_once_are_one_run(retrain):
    one = retrain()
    one.tell(alert(one.version), alert(one.version, fingerprint="fedcba9876543210"))
    assert "cool-down" in decided(one, "wait")
    assert len(one.runs()) == 1
    assert len(one.started()) == 1


def test_without_prometheus_it_waits_and_goes_on_when_it_is_back(retrain, world):
    one = retrain()
    one.close()
    one.url = f"http://127.0.0.1:{prometheus.free_port()}"
    one.start().tell(alert(one.version))
    assert "nothing is known" in decided(one, "wait")
    assert one.runs() == []
    one.close()
    one.url = world[0].url
    one.start()
    assert prometheus.eventually(one.ended)[0].result == "succeeded"


def test_few_labels_are_asked_for_and_patience_ends(retrain):
    one = retrain(policy={"labels": {"total": 5, "per_class": 1}, "patience_hours": 0.0005})
    one.tell(alert(one.version))
    assert "0 new labels, 5 are needed" in decided(one, "ask-labels")
    assert "it waited for over" in decided(one, "decline")
    assert one.runs() == []


def test_labels_that_arrive_in_the_journal_let_it_start(retrain, tmp_path):
    journal = tmp_path / ".loopline/journal"
    one = retrain(policy={"labels": {"total": 4, "per_class": 2}})
    one.tell(alert(one.version))
    assert "each class needs 2 new labels; too few have: bright 0, dark 0" in decided(one, "ask-labels")
    lines = [journals.entry(str(number)) for number in range(4)]
    lines += [journals.label(str(number), ("bright", "dark")[number % 2]) for number in range(4)]
    journal.mkdir(parents=True)
    journals.write(journal, *lines)
    collector = Collector(journal)
    collector.round()
    collector.close()
    assert prometheus.eventually(one.ended)[0].result == "succeeded"


def test_approval_and_the_kill_switch(retrain):
    one = retrain(policy={"approval": True})
    assert loopline(one, "pause", "holiday").returncode == 0
    one.tell(alert(one.version))
    assert "kill switch is on: holiday" in decided(one, "wait")
    assert "paused: holiday" in loopline(one, "status").stdout
    assert loopline(one, "resume").returncode == 0
    decided(one, "await-approval")
    id_ = next(line.split()[0] for line in loopline(one, "status").stdout.splitlines() if "await-approval" in line)
    assert loopline(one, "approve", id_).returncode == 0
    (run,) = prometheus.eventually(one.ended)
    assert run.id == id_
    assert "no alert" in loopline(one, "approve", id_).stderr


def loopline(one, *arguments):
    command = [sys.executable, "-m", "loopline.cli", "retrainer", *arguments]
    return subprocess.run(command, cwd=one.folder, capture_output=True, text=True)


def test_a_step_that_fails_fails_the_run_and_one_that_refuses_refuses_it(retrain):
    one = retrain(
        steps=[{"name": "weigh", "run": "/bin/sh -c 'echo worse; exit 2'", "at": "repository"}],
        policy={"cooldown_hours": 0},
    )
    one.tell(alert(one.version))
    assert "step weigh refused the candidate" in decided(one, "retrain-refused")
    one.close()
    (one.folder / "policy.yaml").write_text((one.folder / "policy.yaml").read_text().replace("exit 2", "exit 3"))
    one.start()
    one.tell(alert(one.version, fingerprint="fedcba9876543210"))
    reason = decided(one, "retrain-failed")
    assert "step weigh ended with exit code 3" in reason
    assert "worse" in reason
    assert 'loopline_retrain_runs_total{model="classifier",result="failed"} 1.0' in one.ask("GET", "/metrics")[1]


def test_a_run_over_its_time_is_ended_and_fails(retrain):
    steps = [{"name": "sleep", "run": "/bin/sh -c 'sleep 600'", "at": "repository"}]
    one = retrain(steps=steps, policy={"timeout_minutes": 0.02})
    one.tell(alert(one.version))
    assert "took the run over" in decided(one, "retrain-failed")


# Who is believed


def test_forged_replayed_oversized_and_malformed_webhooks_are_refused(retrain):
    one = retrain(tell=False)
    body = webhook(alert(one.version))
    refused = {
        "no token": ("/alertmanager", body, {}, 401),
        "a wrong token": ("/alertmanager", body, bearer("wrong"), 401),
        "the secret as a token": ("/alertmanager", body, bearer(retrainers.SECRET), 401),
        "the token alone": ("/alertmanager", body, {"Authorization": retrainers.TOKEN}, 401),
        "no signature": ("/grafana", body, {}, 401),
        "the token at Grafana's door": ("/grafana", body, bearer(), 401),
        "another secret": ("/grafana", body, signed(body, secret="another secret of them"), 401),
        "another body": ("/grafana", body + b" ", signed(body), 401),
        "an old stamp": ("/grafana", body, signed(body, at=time.time() - alerts.STALE - 60), 401),
        "a stamp to come": ("/grafana", body, signed(body, at=time.time() + alerts.STALE + 60), 401),
        "a stamp of letters": ("/grafana", body, signed(body) | {"X-Grafana-Alerting-Timestamp": "now"}, 401),
        "too large": ("/alertmanager", b" " * (alerts.LARGEST + 1), bearer(), 413),
        "no JSON": ("/alertmanager", b"{", bearer(), 400),
        "not UTF-8": ("/alertmanager", b'{"alerts": "\xff"}', bearer(), 400),
        "another shape": ("/alertmanager", b'{"alerts": {}}', bearer(), 400),
        "too many": ("/alertmanager", webhook(*[alert(one.version)] * (alerts.MOST + 1)), bearer(), 400),
        "a start that is none": ("/alertmanager", webhook(alert() | {"startsAt": "soon"}), bearer(), 400),
        "a fingerprint that is none": ("/alertmanager", webhook(alert(fingerprint="../../x")), bearer(), 400),
    }
    answers = {name: one.ask("POST", path, sent, headers)[0] for name, (path, sent, headers, _) in refused.items()}
    assert answers == {name: code for name, (*_, code) in refused.items()}
    assert one.ask("GET", "/alertmanager")[0] == 405
    store = one.store()
    assert store.alerts() == []

    headers = signed(body)
    assert one.ask("POST", "/grafana", body, headers)[0] == 202
    assert one.ask("POST", "/grafana", body, headers)[0] == 401, "a replay"
    assert [row.source for row in store.alerts()] == ["grafana"]
    one.tell(alert(one.version, model="unknown"), alert(one.version, model="../../etc", fingerprint="1" * 16))
    assert len(store.alerts()) == 1, "other people's models are none of ours"
    store.close()


def test_a_body_without_a_length_is_cut_at_the_limit(retrain):
    one = retrain(tell=False)
    parts = (b" " * 65536 for _ in range(8))
    assert one.ask("POST", "/alertmanager", parts, bearer())[0] == 413


def test_without_a_token_it_does_not_start(tmp_path, monkeypatch):
    retrainers.project(tmp_path)
    one = Retrainer(tmp_path)
    monkeypatch.delenv("LOOPLINE_RETRAINER_TOKEN", raising=False)
    done = loopline(one, "--policy", "policy.yaml")
    assert done.returncode == 1
    assert "set LOOPLINE_RETRAINER_TOKEN" in done.stderr
    monkeypatch.setenv("LOOPLINE_RETRAINER_TOKEN", "short")
    assert "at least 16" in loopline(one, "--policy", "policy.yaml").stderr
    monkeypatch.delenv("LOOPLINE_RETRAINER_TOKEN")
    monkeypatch.setenv("LOOPLINE_RETRAINER_TOKEN_FILE", str(tmp_path / "none"))
    assert "cannot be read" in loopline(one, "--policy", "policy.yaml").stderr
    monkeypatch.delenv("LOOPLINE_RETRAINER_TOKEN_FILE")
    monkeypatch.setenv("LOOPLINE_RETRAINER_TOKEN", " \n")
    assert "LOOPLINE_RETRAINER_TOKEN is blank" in loopline(one, "--policy", "policy.yaml").stderr


def test_secrets_are_read_without_white_space_and_the_scheme_in_any_case(monkeypatch):
    monkeypatch.setenv("LOOPLINE_RETRAINER_TOKEN", "0123456789abcdef\n")
    monkeypatch.setenv("LOOPLINE_RETRAINER_HMAC_SECRET", " fedcba9876543210\r\n")
    known = alerts.secrets()
    assert known == alerts.Secrets("0123456789abcdef", "fedcba9876543210")
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert alerts.bearer(f"{scheme} 0123456789abcdef", known.token)
    for header in (None, "", "0123456789abcdef", "Bearer 0123456789abcde", "Basic 0123456789abcdef"):
        assert not alerts.bearer(header, known.token)
    assert not alerts.bearer("Bearer ", None)


def test_a_second_retrainer_on_the_same_state_is_refused(retrain):
    one = retrain(tell=False)
    second = Retrainer(one.folder)
    with pytest.raises(AssertionError, match="another retrainer works in"):
        second.start()


# A storm, and death at any moment


def test_a_storm_of_a_thousand_webhooks_is_one_run_and_no_server_error(retrain):
    one = retrain()
    genuine, first = webhook(alert(one.version)), signed(webhook(alert(one.version)))
    dice = random.Random(0)
    kinds = {
        "duplicate": lambda _: ("/alertmanager", genuine, bearer(), {202}),
        "resigned": lambda n: ("/grafana", genuine + b" " * (n + 1), signed(genuine + b" " * (n + 1)), {202}),
        "replayed": lambda _: ("/grafana", genuine, first, {202, 401}),
        "resolved": lambda _: ("/alertmanager", webhook(alert(one.version, fingerprint="a" * 16, status="resolved")), bearer(), {202}),
        "forged": lambda n: ("/alertmanager", webhook(alert(one.version, fingerprint=f"{n:016x}")), bearer(f"guess{n}"), {401}),
        "forged signature": lambda n: ("/grafana", webhook(alert(one.version, fingerprint=f"{n:016x}")), signed(b""), {401}),
        "malformed": lambda _: ("/alertmanager", dice.randbytes(dice.randrange(300)), bearer(), {400}),
        "cut short": lambda n: ("/alertmanager", genuine[: n % len(genuine)], bearer(), {400}),
        "oversized": lambda n: ("/alertmanager", b"x" * (alerts.LARGEST + n + 1), bearer(), {413}),
    }  # fmt: skip
    sent = [(kind, number) for number in range(112) for kind in kinds]
    dice.shuffle(sent)
    answers, wrong, turn = Counter(), [], threading.Lock()

    def send(mine):
        for kind, number in mine:
            path, body, headers, fine = kinds[kind](number)
            status, text = one.ask("POST", path, body, headers)
            with turn:
                answers[kind, status] += 1
                if status not in fine:
                    wrong.append((kind, number, status, text))

    threads = [threading.Thread(target=send, args=(sent[start::8],)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.total() == 1008
    assert wrong == []
    assert answers["replayed", 202] == 1
    (run,) = prometheus.eventually(one.ended)
    assert run.result == "succeeded"
    assert one.started() == [run.id]
    assert one.ask("GET", "/healthz")[0] == 200
    store = one.store()
    assert {row.id for row in store.alerts()} == {run.id}, "nothing forged came in"
    store.close()
    actions = Counter(action for action, _ in one.decisions())
    assert actions == {"retrain": 1, "retrain-succeeded": 1}


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_it_ends_with_one_run_and_each_decision_once(retrain, seed):
    dice = random.Random(seed)
    steps = [
        {"name": name, "run": f"/bin/sh -c 'sleep 0.15; echo {name} >> {{repository}}/done'", "at": "repository"}
        for name in ("one", "two", "three")
    ]
    one = retrain(steps=steps)
    one.tell(alert(one.version))
    for _ in range(6):
        time.sleep(dice.uniform(0, 0.5))
        dice.choice([one.kill, one.kill, one.close])()
        one.start()
        one.tell(alert(one.version))
    (run,) = prometheus.eventually(one.ended)
    assert run.result == "succeeded"
    prometheus.eventually(lambda: len(one.decisions()) == 2)
    assert [action for action, _ in one.decisions()] == ["retrain", "retrain-succeeded"]
    done = (one.folder / "done").read_text().split()
    assert list(dict.fromkeys(done)) == ["one", "two", "three"], "in order, none left out"
    assert done == sorted(done, key=["one", "two", "three"].index), "no step of the past comes back"


def test_it_listens_without_pillow():
    """Its container has none: nothing there reads an image."""
    code = "import sys; sys.modules['PIL'] = None; from loopline.retraining import webhook"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
