"""The verbs that let a challenger replace the champion, and that roll it back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from loopline.cli.verbs import JOURNAL, VerbParser, Verbs, chosen, room, verb

if TYPE_CHECKING:
    from loopline.rollout.controller import Controller
    from loopline.rollout.state import RolloutPlan, RolloutState


def controller(options: argparse.Namespace) -> Controller:
    """The rollout controller, with the journal of `journal_argument` as the source of evidence."""
    from functools import partial

    from loopline.rollout import controller as rollout
    from loopline.rollout import evidence

    return rollout.Controller(partial(evidence.recent, options.journal))


def plan(options: argparse.Namespace) -> RolloutPlan:
    """The RolloutPlan that the options of `plan_arguments` describe. Raises LooplineError if --steps is malformed."""
    from dataclasses import replace

    from loopline.errors import LooplineError
    from loopline.rollout.judge import RolloutPolicy
    from loopline.rollout.state import RolloutPlan

    try:
        steps = tuple(int(step) for step in options.steps.split(","))
    except ValueError:
        steps = ()
    if not steps or not all(0 < step <= 50 for step in steps) or list(steps) != sorted(set(steps)):
        raise LooplineError(f"--steps {options.steps}: give rising percents up to 50, e.g. 5,25,50")
    policy = chosen(RolloutPolicy, options)
    if options.inputs:
        policy = replace(policy, shadow_inputs=min(policy.shadow_inputs, options.inputs))
    journal = str(options.journal)
    return chosen(RolloutPlan, options, steps=steps, policy=policy, journal=journal, register=options.register)


def _start(options: argparse.Namespace) -> int:
    from loopline.errors import LooplineError
    from loopline.release import bundle
    from loopline.rollout import controller as rollout
    from loopline.rollout.state import OVER

    if (name := bundle.read(options.bundle).manifest.name) != options.model:
        raise LooplineError(f"{options.bundle} is a bundle of {name}, not of {options.model}")
    started = controller(options)
    state = started.start(options.bundle, plan(options), again=options.again)
    if options.wait or state.stage in OVER:
        return _over(started.run(), options)
    rollout.behind()
    print(state)
    return 0


def _resume(options: argparse.Namespace) -> int:
    from loopline.rollout import state

    if present := state.read():
        options.journal = Path(present.plan.journal)
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
    if options.verb == "promote":
        return _over(controller(options).promote(options.model), options)
    _over(controller(options).rollback(options.model, options.reason), options)
    return 0


def _over(state: RolloutState, options: argparse.Namespace) -> int:
    """Print the end of a rollout, update the registry if asked to, and return the exit code."""
    print(state)
    promoted = state.stage == "promoted"
    if state.plan.register or ("register" in options and options.register):
        from loopline.release import registry

        version, folder = (state.challenger, state.after) if promoted else (state.champion, state.before)
        registry.follow(state.model, version, Path(folder))
    return 0 if promoted else 2


def plan_arguments(command: VerbParser, group: argparse._ActionsContainer | None = None) -> None:
    """Add the options of a rollout, which `rollout start` and `deploy` share."""
    start = group or command
    start.add_argument("--again", action="store_true", help="try a bundle again that was rolled back before")
    start.add_argument("--steps", default="5,25,50", help="shares of the requests in percent, rising, up to 50")
    command.options_of("loopline.rollout.state:RolloutPlan", group=group)
    command.options_of("loopline.rollout.judge:RolloutPolicy", group=group)
    register_argument(start)
    journal_argument(start)


def register_argument(command: argparse._ActionsContainer) -> None:
    """Add --register."""
    command.add_argument(
        "--register", action="store_true", help="make the version that serves at the end the registry's champion"
    )


def journal_argument(command: argparse._ActionsContainer) -> None:
    """Add --journal."""
    command.add_argument(
        "--journal", type=Path, default=JOURNAL, metavar="FOLDER", help="journal's folder, with the shadow's inputs"
    )


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    rollout = room(
        verbs, "rollout", "replace the champion behind the gateway by a challenger: shadow, canary, promotion"
    )
    text = "start a rollout in the background, or continue one that was interrupted"
    start = verb(rollout, "start", _start, text)
    start.add_argument("model", help="name of the model")
    start.add_argument(
        "--bundle", type=Path, required=True, help="challenger's bundle folder; it may be deleted afterwards"
    )
    start.add_argument(
        "--wait", action="store_true", help="wait for the end; exits with 0 if promoted, with 2 if rolled back"
    )
    plan_arguments(start)
    verb(rollout, "resume", _resume, "continue a rollout whose controller has ended")
    verb(rollout, "status", _status, "show the stage and the progress of the rollout")
    promote = verb(rollout, "promote", _by_hand, "promote the challenger on trial by hand, to serve all requests")
    rollback = verb(
        rollout, "rollback", _by_hand, "return all requests to the previous champion by hand, within seconds"
    )
    rollback.add_argument("--reason", default="by hand", help="reason for the decision log")
    for command in (promote, rollback):
        command.add_argument("model", help="name of the model")
        register_argument(command)
        journal_argument(command)
