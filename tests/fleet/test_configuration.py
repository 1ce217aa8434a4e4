"""The configuration of Prometheus and Alertmanager is valid, and the documents name every metric."""

import shutil
import subprocess
from pathlib import Path

import prometheus
import pytest
import yaml

from loopline import retraining
from loopline.observability import sentinel
from loopline.server.metrics import CATALOGUE, PREFIX

JOBS = {"prometheus.yml": {"loopline", "sentinel", "journal", "retrainer"}, "kubernetes.yml": {"loopline", "sentinel"}}
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "monitoring"


def checked(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


@prometheus.needed
@pytest.mark.parametrize("name", sorted({path.name for path in (FOLDER / "prometheus").glob("*.yml")} - {"rules.yml"}))
def test_prometheus_accepts_its_configuration(tmp_path, name):
    """Debian builds Prometheus without Kubernetes, so a static list replaces the discovery and the rest is checked."""
    shutil.copytree(FOLDER / "prometheus", tmp_path, dirs_exist_ok=True)
    content = yaml.safe_load((tmp_path / name).read_text())
    for job in (*content["scrape_configs"], *content["alerting"]["alertmanagers"]):
        if discoveries := job.pop("kubernetes_sd_configs", None):
            assert all(entry.keys() == {"role"} and entry["role"] in ("pod", "endpoints") for entry in discoveries)
            job["static_configs"] = [{"targets": ["127.0.0.1:1"]}]
    assert {job["job_name"] for job in content["scrape_configs"]} == JOBS[name], "the names that the rules use"
    (tmp_path / name).write_text(yaml.safe_dump(content))
    ok, output = checked("promtool", "check", "config", tmp_path / name)
    assert ok, output
    (tmp_path / name).write_text(yaml.safe_dump(content | {"scrape_config": []}))
    assert not checked("promtool", "check", "config", tmp_path / name)[0]


@prometheus.needed
def test_alertmanager_accepts_its_configuration(tmp_path):
    path = FOLDER / "alertmanager/alertmanager.yml"
    ok, output = checked("amtool", "check-config", path)
    assert ok, output
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(path.read_text().replace("receiver: team\n", "receiver: nobody\n", 1))
    assert not checked("amtool", "check-config", wrong)[0]


def test_every_metric_is_documented_and_every_documented_metric_exists():
    existing = {PREFIX + metric.name + ("_total" if metric.kind == "counter" else "") for metric in CATALOGUE.values()}
    existing |= sentinel.METRICS.keys() | retraining.METRICS.keys()
    lines = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8").splitlines()
    documented = {line.split("`")[1] for line in lines if line.startswith("| `loopline_")}
    assert documented == existing
    for metric in CATALOGUE.values():
        (line,) = (x for x in lines if x.startswith((f"| `{PREFIX}{metric.name}`", f"| `{PREFIX}{metric.name}_total`")))
        assert line.endswith(f"| {', '.join(metric.labels)} | {metric.help} |")
