"""Simulate a rollout: both lanes get requests, and the judge looks at them again and again until it promotes or rolls back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from loopline.rollout import judge
from loopline.rollout.judge import LaneCounts, RolloutEvidence, RolloutPolicy

STEPS = 3  # 5, 25 and 50 %: each lane gets its minimum in each
LOOKS = 10  # looks at the evidence before a step has its minimum
PATIENCE = 2  # minimums that a step may take before it is rolled back
ERRORS, ACCURACY, SPREAD = 0.001, 0.92, 0.5
# Standard deviation of a process's speed: the medians of two equal processes were measured 3.5 % (one sd) apart on a busy machine
LUCK = 0.025
CLASSES = np.full(10, 0.1)


@dataclass(frozen=True)
class Fault:
    """A fault of the challenger. errors: added to its rate of errors. slower: share by which its latency rises. accuracy: its loss."""

    name: str
    errors: float = 0.0
    slower: float = 0.0
    accuracy: float = 0.0


@dataclass
class _Stream:
    """All requests of a lane so far. errors_at: rate of errors. luck: factor of the process's latency."""

    rng: np.random.Generator
    errors_at: float
    slower: float
    accuracy: float
    luck: float
    lane: LaneCounts = field(default_factory=LaneCounts)

    def more(self, n: int, labels: int, load: NDArray[np.float64]) -> None:
        """Add n requests. load: (n,) factors of latency by the machine's load, the same for both lanes. Pauses hit one lane only."""
        rng, lane = self.rng, self.lane
        seconds = 0.005 * (1 + self.slower) * self.luck * load * np.exp(rng.normal(0, SPREAD, n))
        seconds[rng.random(n) < 0.002] += 0.05
        classes = rng.multinomial(n, CLASSES)
        self.lane = replace(
            lane,
            requests=lane.requests + n,
            errors=lane.errors + int(rng.binomial(n, self.errors_at)),
            step=lane.step + n,
            seconds=np.concatenate([lane.seconds, seconds]),
            classes={str(i): lane.classes.get(str(i), 0.0) + int(count) for i, count in enumerate(classes)},
            labelled=lane.labelled + labels,
            right=lane.right + int(rng.binomial(labels, self.accuracy)),
        )

    def step(self) -> None:
        """Begin a new step."""
        self.lane = replace(self.lane, step=0, seconds=np.zeros(0))


def rollout(fault: Fault, policy: RolloutPolicy, seed: int) -> tuple[bool, int, str]:
    """Return whether the challenger was promoted, the requests of a lane until then, and the reason of a rollback."""
    rng = np.random.default_rng(seed)
    luck = np.exp(rng.normal(0, LUCK, 2))
    baseline = _Stream(rng, ERRORS, 0.0, ACCURACY, luck[0])
    challenger = _Stream(rng, ERRORS + fault.errors, fault.slower, ACCURACY - fault.accuracy, luck[1])
    size = -(-max(policy.requests, policy.slice * policy.points) // LOOKS)
    labels = -(-policy.labels // (LOOKS * STEPS))
    load, spent = 0.0, 0
    for step in range(STEPS):
        # As the controller does: labels come late, so they are waited for in the last step alone.
        demanded = policy if step == STEPS - 1 else replace(policy, labels=0)
        for _ in range(LOOKS * PATIENCE):
            steps = np.zeros(size)
            for i, noise in enumerate(rng.normal(0, 0.02, size)):
                load = 0.99 * load + noise
                steps[i] = load
            for stream in (baseline, challenger):
                stream.more(size, labels, np.exp(steps))
            spent += size
            verdict = judge.canary(RolloutEvidence(challenger=challenger.lane, baseline=baseline.lane), demanded)
            if verdict.action == "roll back":
                return False, spent, verdict.reasons[0]
            if verdict.action == "pass":
                break
        else:
            return False, spent, f"held too long: {verdict.reasons[0]}"
        baseline.step()
        challenger.step()
    return True, spent, ""


def rate(fault: Fault, policy: RolloutPolicy, runs: int, seed: int = 0) -> dict[str, object]:
    """Return the share of rollouts that were rolled back, the median of their requests, and the commonest reason."""
    outcomes = [rollout(fault, policy, seed + number) for number in range(runs)]
    back = [row for row in outcomes if not row[0]]
    reasons = [row[2].partition(" ")[0] for row in back]
    return {
        "rolled_back": len(back) / runs,
        "timed_out": sum(row[2].startswith("held") for row in back) / runs,
        "requests": int(np.median([row[1] for row in (back or outcomes)])),
        "reason": max(sorted(set(reasons)), key=reasons.count) if reasons else "",
        "runs": runs,
    }
