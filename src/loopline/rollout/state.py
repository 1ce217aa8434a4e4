"""What a rollout is to do and where it stands, `.loopline/rollout/state.json`: on the disk before each action."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from loopline.errors import LooplineError
from loopline.lib import files
from loopline.rollout import judge

FOLDER = Path(".loopline/rollout")
SCHEMA = 1
Stage = Literal["shadow", "canary", "promote", "roll back", "promoted", "rolled back"]
OVER = ("promoted", "rolled back")


@dataclass(frozen=True, kw_only=True)
class RolloutPlan:
    """How a rollout goes. steps: percent. hold: seconds that a step may take. every: seconds between two looks.

    inputs: of the shadow, from the journal in that folder; 0: no shadow. replicas: servers of each lane on trial; 0: as many as the
    champion has. register: the registry's champion follows what serves at the end.
    """

    steps: tuple[int, ...] = (5, 25, 50)
    hold: float = 3600.0
    every: float = 0.5
    inputs: int = 500
    journal: str = ".loopline/journal"
    replicas: int = 0
    register: bool = False
    policy: judge.RolloutPolicy = field(default_factory=judge.RolloutPolicy)


@dataclass(frozen=True, kw_only=True)
class RolloutState:
    """Where a rollout is. champion and challenger: versions; before and after: their folders. since: the step's begin, epoch seconds.

    offset: of the gateway's log where the canary began. expected: see `judge.RolloutEvidence`. withdraws: the rollback was the
    challenger's fault or was asked for; one because something could not be done, or stayed unclear, says nothing against a challenger.
    """

    id: str
    model: str
    champion: str
    challenger: str
    before: str
    after: str
    stage: Stage
    step: int = 0
    since: float = 0.0
    offset: int = 0
    expected: float = 0.0
    withdraws: bool = True
    reasons: tuple[str, ...] = ()
    plan: RolloutPlan = field(default_factory=RolloutPlan)

    @property
    def began(self) -> float:
        """Seconds of the epoch."""
        return int(self.id, 16) / 1e9

    def __str__(self) -> str:
        """As `loopline rollout status` prints it."""
        where = f"{self.stage} {self.plan.steps[self.step]} %" if self.stage == "canary" else self.stage
        head = f"{self.model}: {self.challenger:.12} for {self.champion:.12}: {where}"
        return "\n  ".join([head, *self.reasons])


def read(folder: Path = FOLDER) -> RolloutState | None:
    """The rollout that is under way, or the last one; None if there was none. Raises LooplineError on another schema."""
    try:
        content: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if content.pop("schema", None) != SCHEMA:
        raise LooplineError(
            f"{folder}/state.json is of another version of Loopline: remove it if no rollout is under way"
        )
    plan = content.pop("plan")
    policy = judge.RolloutPolicy(**plan.pop("policy"))
    plan = RolloutPlan(**plan | {"policy": policy, "steps": tuple(plan["steps"])})
    return RolloutState(**content | {"plan": plan, "reasons": tuple(content["reasons"])})


def write(state: RolloutState, folder: Path = FOLDER) -> None:
    """Whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / "state.json", json.dumps({"schema": SCHEMA, **asdict(state)}, indent=1), shared=True)
