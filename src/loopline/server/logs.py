"""The server's log: one JSON object a line on standard error."""

from __future__ import annotations

import sys
import time
from typing import Any

import orjson


def log(level: str, message: str, **fields: Any) -> None:
    """Write a line with the time, the level, the message and further fields."""
    row = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "level": level, "message": message, **fields}
    sys.stderr.buffer.write(orjson.dumps(row, default=str) + b"\n")
    sys.stderr.buffer.flush()
