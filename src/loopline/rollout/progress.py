"""The lines under `loopline rollout status` that tell how far the present step of a rollout is."""

from __future__ import annotations

import time
from pathlib import Path

from loopline.errors import LooplineError
from loopline.fleet import members
from loopline.fleet.gateway import BASELINE, CHALLENGER
from loopline.rollout import evidence
from loopline.rollout.state import RolloutState


def progress(state: RolloutState, up: Path = members.FOLDER) -> list[str]:
    """Lines with what the present step has counted and the time left for it; empty if no rollout is under way."""
    if state.stage not in ("shadow", "canary"):
        return []
    plan = state.plan
    left = max(0.0, (state.since or state.began) + plan.hold - time.time())
    until = f"{left / 60:.1f} of {plan.hold / 60:.1f} min are left, then it is rolled back"
    if state.stage == "shadow":
        return [f"asking both servers for {plan.inputs} inputs from the journal"]
    tally = evidence.Tally(state.model)
    tally.begin(state.since)
    try:
        tally.add(evidence.GatewayLog(up / "gateway.log", state.offset).read())
    except OSError as error:
        raise LooplineError(f"the gateway's log cannot be read: {error}") from error
    lines = []
    for name in (CHALLENGER, BASELINE):
        count = len(tally.seconds[name])
        points = min(count // plan.policy.slice, plan.policy.points)
        lines.append(
            f"{name}: {min(count, plan.policy.requests)} of {plan.policy.requests} requests, {points} of "
            f"{plan.policy.points} points of latency, {tally.errors[name]} errors since the canary began"
        )
    return [*lines, until]
