"""The files that a Grafana reads at its start: dashboards, data source, alerts, contact point and policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loopline.observability import rules
from loopline.observability.grafana import alerting, dashboards

HEAD = "# Made by `loopline grafana write`; change src/loopline/observability/grafana/alerting.py instead.\n"


def write(folder: Path, window: str = rules.WINDOW, runbooks: str = rules.RUNBOOKS) -> list[Path]:
    """Write the dashboards, and the files that a Grafana reads from /etc/grafana/provisioning; return all paths."""
    files = {f"dashboards/{uid}.json": dashboards.text(content) for uid, content in dashboards.contents().items()}
    provisioned: dict[str, dict[str, Any]] = {
        "datasources/loopline.yml": alerting.datasources(),
        "dashboards/loopline.yml": alerting.dashboard_providers(),
        "alerting/rules.yml": {"groups": alerting.groups(window, runbooks)},
        "alerting/contact-points.yml": alerting.contact_points(),
        "alerting/policies.yml": alerting.policies(),
    }
    files |= {f"provisioning/{name}": _yaml(content) for name, content in provisioned.items()}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [folder / name for name in files]


def _yaml(content: dict[str, Any]) -> str:
    import yaml

    return HEAD + str(yaml.safe_dump({"apiVersion": 1, **content}, sort_keys=False, width=135, allow_unicode=True))
