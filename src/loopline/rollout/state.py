"""The plan and the state of a rollout in `.loopline/rollout/state.json`, which is written before each action."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from loopline.errors import LooplineError
from loopline.lib import files
from loopline.lib.options import option
from loopline.rollout import judge

FOLDER = Path(".loopline/rollout")
SCHEMA = 1
Stage = Literal["shadow", "canary", "promote", "roll back", "promoted", "rolled back"]
OVER = ("promoted", "rolled back")


@dataclass(frozen=True, kw_only=True)
class RolloutPlan:
    """The course of a rollout.

    steps: percent of the requests that the challenger gets. journal: folder that the shadow's inputs come from. register: at the
    end, make the bundle that serves the registry's champion.
    """

    steps: tuple[int, ...] = (5, 25, 50)
    hold: float = option(3600.0, "largest number of seconds of a step, after which the rollout is rolled back")
    every: float = option(0.5, "seconds between two checks of the lanes")
    inputs: int = option(500, "number of journal inputs for the shadow; 0: no shadow")
    journal: str = ".loopline/journal"
    replicas: int = option(
        0, "number of servers of each lane (default: as many as the champion has)", name="lane-replicas"
    )
    register: bool = False
    policy: judge.RolloutPolicy = field(default_factory=judge.RolloutPolicy)


@dataclass(frozen=True, kw_only=True)
class RolloutState:
    """The state of a rollout.

    id: nanoseconds of the epoch at its start, in hexadecimal. champion, challenger: versions. before, after: their folders.
    stage: what is being done, or how it ended. step: index of the present step of the canary. since: start of the stage or step,
    in seconds of the epoch. offset: byte of the gateway's log at which the canary began. expected: see `judge.RolloutEvidence`.
    withdraws: a rollback counts against the challenger, because it was at fault or a person asked for the rollback. A rollback
    after a failed action or without a clear verdict does not.
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
        """The start of the rollout, in seconds of the epoch."""
        return int(self.id, 16) / 1e9

    def __str__(self) -> str:
        """The lines that `loopline rollout status` prints."""
        stage = f"{self.stage} {self.plan.steps[self.step]} %" if self.stage == "canary" else self.stage
        head = f"{self.model}: {self.challenger:.12} for {self.champion:.12}: {stage}"
        return "\n  ".join([head, *self.reasons])


def read(folder: Path = FOLDER) -> RolloutState | None:
    """The present rollout, or else the last one; None if there was none. Raises LooplineError on another schema."""
    try:
        content: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if content.pop("schema", None) != SCHEMA:
        raise LooplineError(
            f"{folder}/state.json is of another version of Loopline: remove the file if no rollout is under way"
        )
    plan = content.pop("plan")
    policy = judge.RolloutPolicy(**plan.pop("policy"))
    plan = RolloutPlan(**plan | {"policy": policy, "steps": tuple(plan["steps"])})
    return RolloutState(**content | {"plan": plan, "reasons": tuple(content["reasons"])})


def write(state: RolloutState, folder: Path = FOLDER) -> None:
    """Replace the state file atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / "state.json", json.dumps({"schema": SCHEMA, **asdict(state)}, indent=1), shared=True)
