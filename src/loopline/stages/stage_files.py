"""Paths of the stages' files, and writers that are atomic and give the same bytes for the same content."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from loopline.errors import LooplineError
from loopline.lib.files import write
from loopline.settings import ModelSettings

SCRATCH = Path(".loopline")  # ignored by git: checkpoints, timings, downloads
START = ".loopline/start"  # in the working copy of a retraining: the weights of the champion; git and DVC ignore it
UNTAUGHT = "untaught"  # in the folder of a training with a teacher: the same training without it


def parameters(seed: int, model: ModelSettings) -> str:
    """Return the sha256 of a model's settings, as JSON with sorted keys and no spaces: a bundle's lineage names it."""
    content = {"seed": seed, "model": model.model_dump(mode="json", exclude={"tune": True, "train": {"workers"}})}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def manifest(name: str) -> Path:
    """Return the path of the model's manifest."""
    return Path("data") / name / "manifest.parquet"


def stage(name: str, stage: str) -> Path:
    """Return the folder of a stage's outputs, which is created if missing."""
    folder = Path("models") / name / stage
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def scratch(kind: str, name: str) -> Path:
    """Return a folder outside of git and of the stages' outputs, which is created if missing."""
    folder = SCRATCH / kind / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_json(path: Path, content: Any) -> None:
    """Write JSON with two spaces of indent, keys in their order. Not-a-number becomes null."""
    write(path, json.dumps(_clean(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def read_json(path: Path) -> Any:
    """Return the JSON that an earlier stage wrote. Raises LooplineError if it is missing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LooplineError(f"{path} not found: run `dvc repro` to make it") from error


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    """Write a small table for `dvc plots`."""
    lines = [",".join(header), *(",".join(map(_cell, row)) for row in rows)]
    write(path, "\n".join(lines) + "\n")


def _cell(value: Any) -> str:
    text = f"{value:.5f}" if isinstance(value, float) else str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text
