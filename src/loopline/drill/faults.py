"""What the drill breaks on purpose, and the clock it sets: free ports, the retraining policy at its pace, a bundle with a mistake."""

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
SHIFT = 0.3  # of the predicted classes beyond shadow's: of 80 requests chance alone makes much
SLOWER = (
    1.0  # than the champion, as a share: the machine trains and measures beside, so latencies of seconds say little
)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The drill's clock. window: of drift. rate: requests a second. requests, points, slice: see `rollout.judge.RolloutPolicy`.

    labels: that the retraining wants. dataset: see `scenario.pools`.
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
    """The first of a row of ports that nobody has. Raises LooplineError."""
    for _ in range(TRIES):
        with ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for number in range(1, count):
                    stack.enter_context(socket.create_server(("127.0.0.1", first + number)))
            except (OSError, OverflowError):
                continue
            return int(first)
    raise LooplineError(f"there are no {count} free ports in a row on 127.0.0.1")


def policy(folder: Path, pace: Pace) -> Path:
    """The repository's retraining policy, at the drill's pace: seconds in place of hours, and small samples."""
    import yaml

    found = yaml.safe_load((folder / "monitoring/retraining.yaml").read_text(encoding="utf-8"))
    found |= {"window": pace.window, "labels": {"total": pace.labels, "per_class": 5}, "look_again_seconds": 1}
    for step in found["here"]:
        if step["name"] == "rollout":
            step["run"] += (
                f" --inputs 200 --requests {pace.requests} --points {pace.points}"
                f" --slice {pace.slice} --slower {SLOWER} --shift {SHIFT} --hold 240"
            )
    path = folder / ".loopline/retraining.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(found, sort_keys=False), encoding="utf-8")
    return path


def mixed_up(source: Path, folder: Path) -> Path:
    """The bundle with its first two classes' names exchanged: what a mistake in a label file makes of a model."""
    found = bundle.read(source)
    first, second, *others = found.manifest.spec.labels
    spec = replace(found.manifest.spec, labels=(second, first, *others))
    bundle.write(
        folder,
        replace(found.manifest, spec=spec),
        model=source / "model.onnx",
        drift=source / "drift.json",
        golden=golden if (golden := source / "golden.json").exists() else None,
        tokenizer=tokenizer if (tokenizer := source / "tokenizer.json").exists() else None,
        card=(source / "MODEL_CARD.md").read_text(encoding="utf-8"),
    )
    return folder


def kill(servers: Sequence[Process]) -> None:
    """At once, without a word."""
    for server in servers:
        os.kill(server.pid, signal.SIGKILL)
