"""The drill's faults and pace: a bundle with swapped classes, killed servers, a faster retraining policy, and free ports."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from loopline.errors import LooplineError
from loopline.lib.processes import Process
from loopline.release import bundle

TRIES = 50
# The shift of predicted classes that a canary may add to shadow's; large, since 80 requests vary much by chance.
SHIFT = 0.3
# How much slower than the champion a challenger may be, as a share; large, since the busy machine blurs latencies.
SLOWER = 1.0


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The drill's pace.

    window: the drift window. rate: requests per second. requests, points, slice: see `rollout.judge.RolloutPolicy`. labels: the
    number of new labels that the retraining requires. dataset: see `scenario.pools`.
    """

    window: str = "30s"
    rate: float = 80.0
    requests: int = 150
    points: int = 50
    slice: int = 5
    labels: int = 250
    dataset: str | None = None


FAST = Pace(window="15s", rate=150.0, requests=80, points=50, slice=2, labels=200)


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports. Raises LooplineError if none are found."""
    for _ in range(TRIES):
        with ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for number in range(1, count):
                    stack.enter_context(socket.create_server(("127.0.0.1", first + number)))
            except (OSError, OverflowError):
                continue
            return int(first)
    raise LooplineError(f"127.0.0.1 has no {count} consecutive free ports: close other programs that listen")


def policy(folder: Path, pace: Pace) -> Path:
    """Write the repository's retraining policy at the drill's pace, with seconds for hours and small samples; return its path."""
    import yaml

    content = yaml.safe_load((folder / "monitoring/retraining.yaml").read_text(encoding="utf-8"))
    content |= {"window": pace.window, "labels": {"total": pace.labels, "per_class": 5}, "look_again_seconds": 1}
    for step in content["here"]:
        if step["name"] == "rollout":
            step["run"] += (
                f" --inputs 200 --requests {pace.requests} --points {pace.points}"
                f" --slice {pace.slice} --slower {SLOWER} --shift {SHIFT} --hold 240"
            )
    path = folder / ".loopline/retraining.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def mixed_up(source: Path, folder: Path) -> Path:
    """Write a copy of a bundle with its first two class names swapped, as if a label file had a mistake; return its folder."""
    original = bundle.read(source)
    first, second, *others = original.manifest.spec.labels
    spec = replace(original.manifest.spec, labels=(second, first, *others))
    bundle.write(
        folder,
        replace(original.manifest, spec=spec),
        model=source / "model.onnx",
        drift=source / "drift.json",
        golden=golden if (golden := source / "golden.json").exists() else None,
        tokenizer=tokenizer if (tokenizer := source / "tokenizer.json").exists() else None,
        card=(source / "MODEL_CARD.md").read_text(encoding="utf-8"),
    )
    return folder


def kill(servers: Sequence[Process]) -> None:
    """Kill the servers with SIGKILL."""
    for server in servers:
        os.kill(server.pid, signal.SIGKILL)
