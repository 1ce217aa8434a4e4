"""The configuration that `loopline up` gives Prometheus and Alertmanager: the repository's, with its ports, window and pace."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopline.lib.options import option
from loopline.observability import rules

CONFIGURATION = Path(__file__).parents[3] / "monitoring"
TOKEN = "retrainer.token"  # noqa: S105 - the name of a file
FAST = 5.0  # seconds between scrapes, under which Alertmanager notifies after 1 s


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """What `loopline up` starts. The gateway has its metrics on the port after `port`, and each of its servers a free port."""

    bundles: tuple[Path, ...]
    replicas: int = option(1, "number of servers")
    window: str = option(rules.WINDOW, "length of the traffic window for drift: 2m, 1h, 1d")
    scrape: float = option(15.0, "seconds between two scrapes of the metrics")
    sentinel: float = option(60.0, "seconds between two rounds of golden inputs")
    port: int = option(8080, "port that serves requests; the servers' metrics take the ports after it")
    prometheus_port: int = option(9090, "port of Prometheus")
    alertmanager_port: int = option(9093, "port of Alertmanager")
    sentinel_port: int = option(9101, "port of the sentinel's metrics")
    webhook: str | None = option(None, "address that Alertmanager sends alerts to (default: none)")
    retrainer_port: int | None = option(None, "port of a retrainer that gets the alerts (default: start no retrainer)")
    policy: Path = option(Path("monitoring/retraining.yaml"), "file with the retrainer's policy")
    gateway: bool = option(False, "start HAProxy at --port as the gateway, which `loopline rollout` needs")
    journal: Path | None = option(
        None, "folder for samples and labels: docs/journal.md (default: none)", metavar="FOLDER"
    )
    journal_sample: float = option(0.1, "share of ordinary samples that the journal keeps, 0 to 1")
    journal_port: int = option(9102, "port of the journal's metrics")
    keep_metrics: bool = option(False, "keep what Prometheus recorded before (default: start empty)")


def write(options: StackOptions, folder: Path) -> None:
    """Write Prometheus' and Alertmanager's configuration and the rules into the folder, with these ports, window and pace."""
    import yaml

    (folder / "rules.yml").write_text(rules.text(options.window), encoding="utf-8")
    scrape = f"{options.scrape * 1000:.0f}ms"
    prometheus = yaml.safe_load((CONFIGURATION / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
    prometheus["global"] = {"scrape_interval": scrape, "scrape_timeout": scrape, "evaluation_interval": scrape}
    manager = {"static_configs": [{"targets": [f"127.0.0.1:{options.alertmanager_port}"]}]}
    servers = [f"127.0.0.1:{options.port + 1 + number}" for number in range(options.replicas)]
    targets = {"loopline": servers, "sentinel": [f"127.0.0.1:{options.sentinel_port}"]}
    if options.journal:
        targets["journal"] = [f"127.0.0.1:{options.journal_port}"]
    if options.retrainer_port:
        targets["retrainer"] = [f"127.0.0.1:{options.retrainer_port}"]
    prometheus["alerting"] = {"alertmanagers": [manager]}
    prometheus["scrape_configs"] = [
        {"job_name": job["job_name"], "static_configs": [{"targets": targets[job["job_name"]]}]}
        for job in prometheus["scrape_configs"]
        if job["job_name"] in targets
    ]
    if options.gateway:  # the set of servers changes while the stack runs
        # The pattern is relative to this file, because an absolute path may contain characters of a pattern.
        discovery = {"files": ["targets/*.json"], "refresh_interval": "5s"}
        prometheus["scrape_configs"][0] = {"job_name": "loopline", "file_sd_configs": [discovery]}
        gateway = [{"targets": [f"127.0.0.1:{options.port + 1}"]}]
        prometheus["scrape_configs"].append({"job_name": "gateway", "static_configs": gateway})
    (folder / "prometheus.yml").write_text(yaml.safe_dump(prometheus, sort_keys=False), encoding="utf-8")

    alertmanager = yaml.safe_load((CONFIGURATION / "alertmanager/alertmanager.yml").read_text(encoding="utf-8"))
    if options.scrape < FAST:
        alertmanager["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    receivers = {receiver["name"]: receiver for receiver in alertmanager["receivers"]}
    if options.retrainer_port:
        tell_retrainer(alertmanager, f"http://127.0.0.1:{options.retrainer_port}", _token(folder))
    else:
        without_retrainer(alertmanager)
    if options.webhook:
        receivers["team"]["webhook_configs"] = [{"url": options.webhook, "send_resolved": True}]
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(alertmanager, sort_keys=False), encoding="utf-8")


def without_retrainer(alertmanager: dict[str, Any]) -> None:
    """Remove the retrainer from Alertmanager's configuration."""
    alertmanager["receivers"] = [receiver for receiver in alertmanager["receivers"] if receiver["name"] != "retrainer"]
    routes = alertmanager["route"]["routes"]
    alertmanager["route"]["routes"] = [route for route in routes if route["receiver"] != "retrainer"]


def tell_retrainer(alertmanager: dict[str, Any], url: str, token: str) -> None:
    """Set the retrainer's address in Alertmanager's configuration. token: path of the token's file, as Alertmanager sees it."""
    (receiver,) = (receiver for receiver in alertmanager["receivers"] if receiver["name"] == "retrainer")
    (hook,) = receiver["webhook_configs"]
    hook["url"] = f"{url}/alertmanager"
    hook["http_config"]["authorization"]["credentials_file"] = token


def _token(folder: Path) -> str:
    """Write a new token for Alertmanager and the retrainer, and return its path. Only this user can read the file."""
    token = folder / TOKEN
    token.unlink(missing_ok=True)
    with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return str(token.resolve())
