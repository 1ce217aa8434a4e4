"""The configuration of gateway, Prometheus and Alertmanager in the containers of serving/compose.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path

from loopline.fleet import configuration, gateway
from loopline.fleet.gateway import CHALLENGER, CHAMPION, COLOURS
from loopline.observability import rules


def write(folder: Path, ports: Mapping[str, int], *, scrape: float, retrainer: str) -> None:
    """Write the configuration into `folder`, which only this user can enter.

    ports: service -> port of its metrics, of all services beside the servers that Prometheus scrapes. scrape: seconds between
    scrapes. retrainer: the address that gets alerts; empty: no retrainer.
    """
    import yaml

    for name in ("gateway", "prometheus", "alertmanager", CHAMPION, CHALLENGER, *COLOURS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    (folder / "gateway/haproxy.cfg").write_text(gateway.containers("/etc/loopline"), encoding="utf-8")
    (folder / "gateway/shares.map").touch()
    (folder / "prometheus/rules.yml").write_text(rules.text(rules.WINDOW), encoding="utf-8")
    source = configuration.CONFIGURATION
    prometheus = yaml.safe_load((source / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
    prometheus["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": ["alertmanager:9093"]}]}]}
    prometheus["global"]["scrape_interval"] = f"{ceil(1000 * scrape)}ms"
    names = {"names": [*COLOURS, CHALLENGER], "type": "A", "port": 8080, "refresh_interval": "5s"}
    lane = {"source_labels": ["__meta_dns_name"], "target_label": "lane"}
    champion = {"regex": "|".join(COLOURS), "replacement": CHAMPION}
    prometheus["scrape_configs"] = [
        {"job_name": "loopline", "dns_sd_configs": [names], "relabel_configs": [lane, {**lane, **champion}]},
        *({"job_name": name, "static_configs": [{"targets": [f"{name}:{port}"]}]} for name, port in ports.items()),
    ]
    (folder / "prometheus/prometheus.yml").write_text(yaml.safe_dump(prometheus), encoding="utf-8")
    alertmanager = yaml.safe_load((source / "alertmanager/alertmanager.yml").read_text(encoding="utf-8"))
    if retrainer:
        configuration.tell_retrainer(alertmanager, retrainer, "/etc/loopline/token")
    else:
        configuration.without_retrainer(alertmanager)
    (folder / "alertmanager/alertmanager.yml").write_text(yaml.safe_dump(alertmanager), encoding="utf-8")
