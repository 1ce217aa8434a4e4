"""The verbs that put a challenger in the champion's place, and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from loopline.cli.verbs import JOURNAL, Verbs, room, verb

if TYPE_CHECKING:
    from loopline.delivery.rollout import Controller
    from loopline.delivery.state import Plan, State


def _controller(options: argparse.Namespace) -> Controller:
    from functools import partial

    from loopline.delivery import evidence, rollout

    return rollout.Controller(partial(evidence.recent, options.journal))


def _plan(options: argparse.Namespace) -> Plan:
    from dataclasses import fields, replace

    from loopline.delivery.judge import Policy
    from loopline.delivery.state import Plan
    from loopline.errors import LooplineError

    try:
        steps = tuple(int(step) for step in options.steps.split(","))
    except ValueError:
        steps = ()
    if not steps or not all(0 < a <= 50 for a in steps) or list(steps) != sorted(set(steps)):
        raise LooplineError(f"--steps {options.steps}: rising percents up to 50, e.g. 5,25,50")
    given = {name: value for name, value in vars(options).items() if value is not None}
    policy = Policy(**{f.name: given[f.name] for f in fields(Policy) if f.name in given})
    if options.inputs:
        policy = replace(policy, shadow_inputs=min(policy.shadow_inputs, options.inputs))
    return Plan(
        steps=steps,
        hold=options.hold,
        every=options.every,
        inputs=options.inputs,
        replicas=options.lane_replicas,
        policy=policy,
    )


def _start(options: argparse.Namespace) -> int:
    from loopline.delivery.state import OVER
    from loopline.errors import LooplineError
    from loopline.release import bundle

    if (name := bundle.read(options.bundle).manifest.name) != options.model:
        raise LooplineError(f"{options.bundle} is a bundle of {name}, not of {options.model}")
    controller = _controller(options)
    state = controller.start(options.bundle, _plan(options), again=options.again)
    if options.wait or state.stage in OVER:
        return _over(controller.run(), options)
    _behind(options)
    print(state)
    return 0


def _behind(options: argparse.Namespace) -> None:
    """The controller as a process of its own, that `loopline down` ends."""
    import sys

    from loopline import processes
    from loopline.delivery import fleet

    command = [sys.executable, "-m", "loopline.cli", "rollout", "resume", "--journal", str(options.journal)]
    command += ["--register"] if options.register else []
    with processes.locked(fleet.FOLDER):
        there = processes.running(fleet.FOLDER)
        processes.save([*there, processes.start("rollout", command, "", fleet.FOLDER)], fleet.FOLDER)


def _resume(options: argparse.Namespace) -> int:
    return _over(_controller(options).run(), options)


def _status(_: argparse.Namespace) -> int:
    from loopline.delivery import state

    print(state.read() or "no rollout yet")
    return 0


def _by_hand(options: argparse.Namespace) -> int:
    controller = _controller(options)
    if options.verb == "promote":
        return _over(controller.promote(options.model), options)
    _over(controller.rollback(options.model, options.reason), options)
    return 0


def _over(state: State, options: argparse.Namespace) -> int:
    print(state)
    promoted = state.stage == "promoted"
    if options.register:
        from loopline.release import registry

        serves = (state.challenger, state.after) if promoted else (state.champion, state.before)
        registry.follow(state.model, serves[0], Path(serves[1]))
    return 0 if promoted else 2


def add(rooms: Verbs) -> None:
    """Put this room's verbs into the command line."""
    rollout = room(
        rooms, "rollout", "a challenger takes the champion's place behind the gateway: shadow, canary, promotion"
    )
    start = verb(rollout, "start", _start, "begin, or go on with one that was cut off; it runs behind unless --wait")
    start.add_argument("model")
    start.add_argument("--bundle", type=Path, required=True, help="the challenger's folder; it may vanish afterwards")
    start.add_argument(
        "--wait", action="store_true", help="until it is over: exits with 0 if promoted, 2 if rolled back"
    )
    start.add_argument("--again", action="store_true", help="even if it was rolled back before, or just now")
    start.add_argument("--steps", default="5,25,50", help="percent of the requests, rising")
    start.add_argument(
        "--hold", type=float, default=3600.0, help="seconds that a step may take; then it is rolled back"
    )
    start.add_argument("--every", type=float, default=0.5, help="seconds between two looks")
    start.add_argument("--inputs", type=int, default=500, help="of the journal, for the shadow; 0: no shadow")
    start.add_argument("--lane-replicas", type=int, default=0, help="servers of each lane (default: as the champion)")
    for name, kind, text in (
        ("requests", int, "of each lane, in each step"),
        ("points", int, "of latency in each lane"),
        ("slice", int, "requests that one of them is the 95th percentile of"),
        ("slower", float, "share by which latency may rise"),
        ("shift", float, "distance between the predicted classes, beyond shadow's"),
        ("labels", int, "labelled answers that are demanded before the promotion"),
    ):
        start.add_argument(f"--{name}", type=kind, help=f"{text} (default: see docs/rollout.md)")
    resume = verb(rollout, "resume", _resume, "go on with a rollout whose controller ended")
    verb(rollout, "status", _status, "where it stands")
    promote = verb(rollout, "promote", _by_hand, "by hand: the challenger on trial serves all")
    rollback = verb(
        rollout, "rollback", _by_hand, "by hand, at any time: the champion before it serves all, in seconds"
    )
    rollback.add_argument("--reason", default="by hand", help="for the decision log")
    for made in (promote, rollback):
        made.add_argument("model")
    for made in (start, resume, promote, rollback):
        made.add_argument(
            "--journal", type=Path, default=JOURNAL, metavar="FOLDER", help="where shadow's inputs are from"
        )
        made.add_argument("--register", action="store_true", help="let the registry's champion be what serves")
