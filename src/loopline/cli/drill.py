"""The drill's verb."""

from __future__ import annotations

import argparse
from pathlib import Path

from loopline.cli.verbs import Verbs, verb


def _drill(options: argparse.Namespace) -> int:
    import signal
    from dataclasses import replace

    from loopline import settings, tasks
    from loopline.drill import faults, story
    from loopline.errors import LooplineError

    drilled = [
        name
        for name, model in settings.load().models.items()
        if (task := tasks.find(model.task)).has_classes and task.truth == "label"
    ]
    model = options.model or next(iter(drilled), None)
    if model not in drilled:
        raise LooplineError(
            f"the drill plays a model that gives one class a sample: {', '.join(drilled) or 'none'} in params.yaml"
        )

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)  # it cleans up after itself either way
    pace = faults.FAST if options.fast else faults.Pace()
    pace = replace(pace, labels=options.labels or pace.labels, dataset=options.dataset)
    drill = story.Drill(Path.cwd(), options.out, pace, model)
    try:
        drill.play()
    finally:
        drill.close()
    print(f"\n{options.out}/timeline.png shows it; decisions and evidence lie beside it")
    return 0


def add(rooms: Verbs) -> None:
    """Put this room's verb into the command line."""
    made = verb(rooms, "drill", _drill, "play the whole loop with real parts: drift, retraining, canary, rollback")
    made.add_argument("--fast", action="store_true", help="a faster clock, for CI")
    made.add_argument("--model", help="that is drilled (default: the first that gives one class a sample)")
    made.add_argument("--labels", type=int, help="that the retraining wants (default: 250; with --fast 200)")
    made.add_argument("--dataset", help="that texts come from in the drift (default: see docs/loop.md)")
    made.add_argument("--out", type=Path, default=Path("drill"), help="folder for the result (default: drill)")
