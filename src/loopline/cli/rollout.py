"""The verbs that put a challenger in the champion's place, and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from loopline.cli.verbs import JOURNAL, Verbs, room, verb

if TYPE_CHECKING:
    from loopline.rollout.controller import Controller
    from loopline.rollout.state import RolloutPlan, RolloutState


def controller(options: argparse.Namespace) -> Controller:
    """Of the journal that `journal_argument` took."""
    from functools import partial

    from loopline.rollout import controller as rollout
    from loopline.rollout import evidence

    return rollout.Controller(partial(evidence.recent, options.journal))


def plan(options: argparse.Namespace) -> RolloutPlan:
    """What `plan_arguments` took. Raises LooplineError on steps that are none."""
    from dataclasses import fields, replace

    from loopline.errors import LooplineError
    from loopline.rollout.judge import RolloutPolicy
    from loopline.rollout.state import RolloutPlan

    try:
        steps = tuple(int(step) for step in options.steps.split(","))
    except ValueError:
        steps = ()
    if not steps or not all(0 < a <= 50 for a in steps) or list(steps) != sorted(set(steps)):
        raise LooplineError(f"--steps {options.steps}: rising percents up to 50, e.g. 5,25,50")
    given = {name: value for name, value in vars(options).items() if value is not None}
    policy = RolloutPolicy(**{f.name: given[f.name] for f in fields(RolloutPolicy) if f.name in given})
    if options.inputs:
        policy = replace(policy, shadow_inputs=min(policy.shadow_inputs, options.inputs))
    return RolloutPlan(
        steps=steps,
        hold=options.hold,
        every=options.every,
        inputs=options.inputs,
        journal=str(options.journal),
        replicas=options.lane_replicas,
        register=options.register,
        policy=policy,
    )


def _start(options: argparse.Namespace) -> int:
    from loopline.errors import LooplineError
    from loopline.release import bundle
    from loopline.rollout import controller as rollout
    from loopline.rollout.state import OVER

    if (name := bundle.read(options.bundle).manifest.name) != options.model:
        raise LooplineError(f"{options.bundle} is a bundle of {name}, not of {options.model}")
    made = controller(options)
    state = made.start(options.bundle, plan(options), again=options.again)
    if options.wait or state.stage in OVER:
        return _over(made.run(), options)
    rollout.behind()
    print(state)
    return 0


def _resume(options: argparse.Namespace) -> int:
    from loopline.rollout import state

    if found := state.read():
        options.journal = Path(found.plan.journal)
    return _over(controller(options).run(), options)


def _status(_: argparse.Namespace) -> int:
    from loopline.rollout import controller as rollout
    from loopline.rollout import state

    if (present := state.read()) is None:
        print("no rollout yet")
        return 0
    print("\n  ".join([str(present), *rollout.progress(present)]))
    return 0


def _by_hand(options: argparse.Namespace) -> int:
    made = controller(options)
    if options.verb == "promote":
        return _over(made.promote(options.model), options)
    _over(made.rollback(options.model, options.reason), options)
    return 0


def _over(state: RolloutState, options: argparse.Namespace) -> int:
    print(state)
    promoted = state.stage == "promoted"
    if state.plan.register or ("register" in options and options.register):
        from loopline.release import registry

        serves = (state.challenger, state.after) if promoted else (state.champion, state.before)
        registry.follow(state.model, serves[0], Path(serves[1]))
    return 0 if promoted else 2


def plan_arguments(start: argparse._ActionsContainer) -> None:
    """Options of a rollout, whoever starts it."""
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
    register_argument(start)
    journal_argument(start)


def register_argument(made: argparse._ActionsContainer) -> None:
    """Whether the registry follows."""
    made.add_argument("--register", action="store_true", help="let the registry's champion be what serves")


def journal_argument(made: argparse._ActionsContainer) -> None:
    """The journal's folder."""
    made.add_argument("--journal", type=Path, default=JOURNAL, metavar="FOLDER", help="where shadow's inputs are from")


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
    plan_arguments(start)
    verb(rollout, "resume", _resume, "go on with a rollout whose controller ended")
    verb(rollout, "status", _status, "where it stands")
    promote = verb(rollout, "promote", _by_hand, "by hand: the challenger on trial serves all")
    rollback = verb(
        rollout, "rollback", _by_hand, "by hand, at any time: the champion before it serves all, in seconds"
    )
    rollback.add_argument("--reason", default="by hand", help="for the decision log")
    for made in (promote, rollback):
        made.add_argument("model")
        register_argument(made)
        journal_argument(made)
