"""The dashboards are files: `monitoring/grafana/dashboards/*.json`, as Grafana exports them.

Change them in a Grafana, then `loopline grafana export monitoring/grafana`. Tests hold every series that they name against the
catalogue of metrics, and their lines against the objectives of the rules.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[4] / "monitoring/grafana/dashboards"  # the repository's


def contents() -> dict[str, dict[str, Any]]:
    """Each dashboard by its uid, as the HTTP API takes it."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def text(content: dict[str, Any]) -> str:
    """As it is committed: sorted, so that what Grafana exports can be compared."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
