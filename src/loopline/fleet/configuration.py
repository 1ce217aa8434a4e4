"""What `loopline up` tells Prometheus and Alertmanager: the repository's configuration, with its ports, window and pace."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopline.observability import rules

CONFIGURATION = Path(__file__).parents[3] / "monitoring"  # the repository's
TOKEN = "retrainer.token"  # noqa: S105 - the name of a file
FAST = 5.0  # seconds between scrapes: who looks more often wants to be told at once


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """See `loopline up --help`. window: of drift; what is evaluated follows it. scrape: seconds.

    gateway: HAProxy has `port`, its metrics the next one, and each server a free one. journal: a folder, see docs/journal.md.
    keep_metrics: Prometheus goes on with what it recorded before.
    """

    bundles: tuple[Path, ...]
    replicas: int = 1
    window: str = rules.WINDOW
    scrape: float = 15.0
    sentinel: float = 60.0
    port: int = 8080
    prometheus_port: int = 9090
    alertmanager_port: int = 9093
    sentinel_port: int = 9101
    webhook: str | None = None
    retrainer_port: int | None = None
    policy: Path = Path("monitoring/retraining.yaml")
    gateway: bool = False
    journal: Path | None = None
    journal_sample: float = 0.1
    journal_port: int = 9102
    keep_metrics: bool = False


def write(options: StackOptions, folder: Path) -> None:
    """The repository's configuration of Prometheus and Alertmanager, with these ports, this window and this pace."""
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
    if options.gateway:  # which servers there are changes while it runs
        # Relative to this configuration: a pattern's characters in our own path would mean something.
        files = ["targets/*.json"]
        prometheus["scrape_configs"][0] = {
            "job_name": "loopline",
            "file_sd_configs": [{"files": files, "refresh_interval": "5s"}],
        }
        own = [{"targets": [f"127.0.0.1:{options.port + 1}"]}]
        prometheus["scrape_configs"].append({"job_name": "gateway", "static_configs": own})
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
    """Take it out of Alertmanager's configuration."""
    alertmanager["receivers"] = [one for one in alertmanager["receivers"] if one["name"] != "retrainer"]
    routes = alertmanager["route"]["routes"]
    alertmanager["route"]["routes"] = [route for route in routes if route["receiver"] != "retrainer"]


def tell_retrainer(alertmanager: dict[str, Any], url: str, token: str) -> None:
    """Where it is, in Alertmanager's configuration. token: the path of a file, as Alertmanager sees it."""
    (receiver,) = (one for one in alertmanager["receivers"] if one["name"] == "retrainer")
    (hook,) = receiver["webhook_configs"]
    hook["url"] = f"{url}/alertmanager"
    hook["http_config"]["authorization"]["credentials_file"] = token


def _token(folder: Path) -> str:
    """Alertmanager and the retrainer share a token of this start; only we can read its file."""
    token = folder / TOKEN
    token.unlink(missing_ok=True)
    with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return str(token.resolve())
