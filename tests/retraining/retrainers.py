"""Test helpers: a repository with one model, Prometheus metrics with given values, a retrainer process, and webhooks."""

import hashlib
import hmac
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import brightness
import bundles
import journals
import prometheus
import yaml

from loopline.data import manifest
from loopline.release import bundle, decisions
from loopline.retraining.run_store import RetrainerStore

TOKEN, SECRET = "a-token-of-the-tests", "a-secret-of-the-tests"
POLICY = yaml.safe_load((brightness.ROOT / "monitoring/retraining.yaml").read_text(encoding="utf-8"))
FREE = {"labels": {"total": 0, "per_class": 0}, "look_again_seconds": 0.2}
# A step that appends the run's id to the file `started` at each start.
WORK = [{"name": "work", "run": "/bin/sh -c 'echo {run} >> {repository}/started'", "at": "repository"}]


def git(folder, *arguments):
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def project(folder):
    """Create a git repository with params.yaml and a bundle that tells bright from dark; return the bundle's version."""
    git_config = {"GIT_CONFIG_GLOBAL": "/dev/null"}
    subprocess.run(["git", "init", "--quiet", "-b", "main", folder], check=True, env=os.environ | git_config)
    (folder / "params.yaml").write_text(brightness.params())
    (folder / ".gitignore").write_text(".loopline/\nmodels/\n")
    git(folder, "add", "-f", "params.yaml", ".gitignore")
    git(folder, "commit", "--quiet", "-m", "start")
    (folder / "models/classifier").mkdir(parents=True)
    bundles.classifier(folder / "models/classifier/bundle")
    return bundle.read(folder / "models/classifier/bundle").version[:12]


def metrics(version, *, score=3.0, loss=0.4, alerts=(), rows=None):
    """The text of metrics as if servers and rules had recorded them. rows: (signal, bin) -> a counter's value."""
    labels = f'model="classifier",version="{version}"'
    lines = [f"loopline:drift_score{{{labels}}} {score}", f"loopline:quality_loss{{{labels}}} {loss}"]
    lines += [f"loopline:quality_limit{{{labels}}} 0.05", f"loopline_model_info{{{labels}}} 1"]
    lines += [f'ALERTS{{alertname="{name}",alertstate="firing",model="classifier"}} 1' for name in alerts]
    for (signal_, bin_), value in (rows or {("brightness", "00"): 0}).items():
        lines.append(f'loopline_signal_rows_total{{{labels},signal="{signal_}",bin="{bin_}"}} {value}')
    return "\n".join(lines) + "\n"


def alert(version="", *, name="RetrainCandidate", fingerprint="0123456789abcdef", status="firing", starts=0, **labels):
    start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1_790_000_000 + starts))
    labels = {"alertname": name, "model": "classifier", "version": version, "severity": "retrain"} | labels
    return {"status": status, "labels": labels, "fingerprint": fingerprint, "startsAt": start, "endsAt": start}


def webhook(*alerts):
    return json.dumps({"version": "4", "status": "firing", "receiver": "retrainer", "alerts": list(alerts)}).encode()


def bearer(token=TOKEN):
    return {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}


def signed(body, *, at=None, secret=SECRET):
    stamp = str(int(time.time() if at is None else at))
    signature = hmac.new(secret.encode(), f"{stamp}:".encode() + body, hashlib.sha256).hexdigest()
    return {"X-Grafana-Alerting-Signature": signature, "X-Grafana-Alerting-Timestamp": stamp}


def shifted(folder):
    """(a new journal in this folder, the test samples): each brightness once, every fourth labelled as batch v2.

    Of the journal's requests, 60 came before the first labelled one and 90 came since.
    """
    images = [brightness.png(v) for v in range(256)]
    labelled = [journals.entry(str(v), image=images[v], time=1000.0 + v) for v in range(0, 256, 4)]
    before, after = (
        [journals.entry(f"{at}-{n}", time=at + n) for n in range(count)] for at, count in ((0.0, 60), (2000.0, 26))
    )
    labels = [journals.label(line["id"], "bright") for line in labelled]
    samples = [
        manifest.Sample(
            id=hashlib.sha256(images[v]).hexdigest(),
            source="v2" if v % 4 == 0 else "dataset",
            path=f"{v}.png",
            split="test",
            label="bright" if v > 127 else "dark",
            image=images[v],
            width=8,
            height=8,
        )
        for v in range(256)
    ]
    return journals.kept(folder, *before, *labelled, *after, *labels), samples


def threshold_bundle(folder, threshold):
    """Write the bundle of a model that calls brightness above the threshold bright; the true threshold is 127.5."""
    parts = folder.with_name(f"parts{threshold}")
    parts.mkdir(parents=True)
    model = brightness.onnx_model(parts / "model.onnx", threshold)
    (parts / "drift.json").write_text(json.dumps(brightness.reference(brightness.described().spec)))
    return bundle.write(
        folder, brightness.described(), model=model, drift=parts / "drift.json", card="# c\n", pictures=[]
    )


class Retrainer:
    """A `loopline retrainer` process in a folder."""

    def __init__(self, folder, url="http://127.0.0.1:9", steps=WORK, **changes):
        self.folder, self.port, self.process = folder, prometheus.free_port(), None
        self.url = url
        content = POLICY | FREE | {"here": steps} | changes
        (folder / "policy.yaml").write_text(yaml.safe_dump(content))

    def start(self):
        command = [sys.executable, "-m", "loopline.cli", "retrainer", "--port", str(self.port)]
        command += ["--policy", "policy.yaml", "--prometheus", self.url, "--window", "1h"]
        environment = os.environ | {"LOOPLINE_RETRAINER_TOKEN": TOKEN, "LOOPLINE_RETRAINER_HMAC_SECRET": SECRET}
        with (self.folder / "retrainer.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        prometheus.eventually(self._healthy)
        return self

    def _healthy(self):
        assert self.process.poll() is None, (self.folder / "retrainer.log").read_text()
        return self.ask("GET", "/healthz")[0] == 200

    def ask(self, method, path, body=None, headers=None):
        """(status, text)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def send(self, *alerts):
        status, text = self.ask("POST", "/alertmanager", webhook(*alerts), bearer())
        assert status == 202, text

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    # What the retrainer did, as its files show

    def store(self):
        return RetrainerStore(self.folder / ".loopline/retrainer")

    def runs(self):
        store = self.store()
        runs = store.runs()
        store.close()
        return runs

    def ended(self):
        """The runs if there is at least one and all have ended, else None."""
        runs = self.runs()
        return runs if runs and all(run.result for run in runs) else None

    def decisions(self):
        """[(action, reasons), ...] of the decision log."""
        records = decisions.read(self.folder / "decisions/log.jsonl").records
        return [(record.action, " ".join(record.reasons)) for record in records]

    def started(self):
        """The run's id for each start of the step WORK."""
        path = self.folder / "started"
        return path.read_text().splitlines() if path.exists() else []

    def log(self):
        return Path(self.folder / "retrainer.log").read_text()
