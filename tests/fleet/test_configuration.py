"""What Prometheus and Alertmanager are given is valid, and the documents name every metric."""

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
def test_prometheus_takes_its_configuration(tmp_path, name):
    """Debian builds Prometheus without Kubernetes: there the discovery gives way to a list, and the rest is checked."""
    shutil.copytree(FOLDER / "prometheus", tmp_path, dirs_exist_ok=True)
    content = yaml.safe_load((tmp_path / name).read_text())
    for job in (*content["scrape_configs"], *content["alerting"]["alertmanagers"]):
        if found := job.pop("kubernetes_sd_configs", None):
            assert all(one.keys() == {"role"} and one["role"] in ("pod", "endpoints") for one in found)
            job["static_configs"] = [{"targets": ["127.0.0.1:1"]}]
    assert {job["job_name"] for job in content["scrape_configs"]} == JOBS[name], "as the rules call them"
    (tmp_path / name).write_text(yaml.safe_dump(content))
    ok, said = checked("promtool", "check", "config", tmp_path / name)
    assert ok, said
    (tmp_path / name).write_text(yaml.safe_dump(content | {"scrape_config": []}))
    assert not checked("promtool", "check", "config", tmp_path / name)[0]


@prometheus.needed
def test_alertmanager_takes_its_configuration(tmp_path):
    path = FOLDER / "alertmanager/alertmanager.yml"
    ok, said = checked("amtool", "check-config", path)
    assert ok, said
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(path.read_text().replace("receiver: team\n", "receiver: nobody\n", 1))
    assert not checked("amtool", "check-config", wrong)[0]


def test_every_metric_is_documented_and_every_documented_one_exists():
    named = {PREFIX + m.name + ("_total" if m.kind == "counter" else "") for m in CATALOGUE.values()}
    named |= sentinel.METRICS.keys() | retraining.METRICS.keys()
    lines = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8").splitlines()
    documented = {line.split("`")[1] for line in lines if line.startswith("| `loopline_")}
    assert documented == named
    for metric in CATALOGUE.values():
        (line,) = (x for x in lines if x.startswith((f"| `{PREFIX}{metric.name}`", f"| `{PREFIX}{metric.name}_total`")))
        assert line.endswith(f"| {', '.join(metric.labels)} | {metric.help} |")
