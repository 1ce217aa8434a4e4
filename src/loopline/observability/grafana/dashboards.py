"""The dashboards: the files `monitoring/grafana/dashboards/*.json`, as Grafana exports them.

To change one, edit it in a Grafana, then run `loopline grafana export URL`. Tests compare every series that a dashboard names with
the catalogue of metrics, and its threshold lines with the objectives of the rules.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[4] / "monitoring/grafana/dashboards"  # in the repository


def contents() -> dict[str, dict[str, Any]]:
    """Each dashboard by its uid, as the HTTP API takes it."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def text(content: dict[str, Any]) -> str:
    """The file's text, with sorted keys, so that exports of Grafana can be compared."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
