"""Checkpoints from which a killed training resumes: `work/checkpoint.pt`, replaced after each epoch, loaded without running code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopline.lib import files

if TYPE_CHECKING:
    import torch

NAME = "checkpoint.pt"


@dataclass
class TrainingState:
    """The state of a training. `history` has a row for each epoch, `best` the weights of the epoch with the least loss."""

    epoch: int = 0  # number of finished epochs
    best_epoch: int = 0
    best_loss: float = inf
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


def fingerprint(*parts: Any) -> str:
    """Return the sha256 of what decides a training's result (settings, sample ids, seed), the key of its checkpoint."""
    return hashlib.sha256(json.dumps(parts, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return value.model_dump(exclude={"workers"}) if hasattr(value, "model_dump") else value.tolist()


def save(work: Path, key: str, state: TrainingState, **parts: Any) -> None:
    """Keep `state` and the state dicts of `parts` (model, optimizer, ...) under `key`."""
    import torch

    content = {"key": key, "state": vars(state), "parts": {name: part.state_dict() for name, part in parts.items()}}
    with files.replacing(work / NAME) as partial:
        torch.save(content, partial)


def load(work: Path, key: str, **parts: Any) -> TrainingState:
    """Load the checkpoint of `key` into `parts` and return its state; a fresh state if there is none with this key."""
    import torch

    if not (work / NAME).exists():
        return TrainingState()
    # To the CPU: optimizers and modules copy to their own device. weights_only: tensors and numbers, no code.
    loaded = torch.load(work / NAME, map_location="cpu", weights_only=True)
    if loaded["key"] != key:
        return TrainingState()
    for name, part in parts.items():
        part.load_state_dict(loaded["parts"][name])
    return TrainingState(**loaded["state"])


def forget(work: Path) -> None:
    """Remove the checkpoint. Call it after all results are written."""
    (work / NAME).unlink(missing_ok=True)
