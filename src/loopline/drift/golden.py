"""`golden.json`: a few samples with the answers of the released model. A live server must still give the same answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from loopline.errors import LooplineError

SCHEMA_VERSION = 1
DIGITS = 6


@dataclass(frozen=True)
class GoldenSample:
    """An encoded image or a text, and its answer by `/predict/<model>`."""

    given: bytes | str
    answer: Any


def to_dict(samples: Sequence[GoldenSample]) -> dict[str, Any]:
    """Return the content of `golden.json`."""
    rows = [
        ({"text": s.given} if isinstance(s.given, str) else {"image": base64.b64encode(s.given).decode("ascii")})
        | {"answer": _rounded(s.answer)}
        for s in samples
    ]
    return {"schema": SCHEMA_VERSION, "samples": rows}


def read(path: Path) -> list[GoldenSample]:
    """Read a bundle's `golden.json`. Raises LooplineError on an unreadable file and on another schema."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA_VERSION:
            raise LooplineError(f"{path} has schema {content['schema']}, this version reads {SCHEMA_VERSION}")
        return [
            GoldenSample(row["text"] if "text" in row else base64.b64decode(row["image"]), row["answer"])
            for row in content["samples"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LooplineError(f"{path} cannot be read: {error!r}") from error


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def distance(a: Any, b: Any) -> float:
    """Return the largest difference of two answers' numbers, relative for numbers over 1; infinity if anything else differs."""
    if isinstance(a, dict) and isinstance(b, dict):
        return max((distance(a[key], b[key]) for key in a), default=0.0) if a.keys() == b.keys() else inf
    if isinstance(a, list) and isinstance(b, list):
        return max((distance(x, y) for x, y in zip(a, b, strict=True)), default=0.0) if len(a) == len(b) else inf
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) / max(1.0, abs(a))
    return 0.0 if a == b else inf
