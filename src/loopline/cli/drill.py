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
            f"the drill needs a model that gives one class a sample; params.yaml has: {', '.join(drilled) or 'none'}"
        )

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)  # so that `close` runs after SIGTERM too, not only after Ctrl-C
    pace = faults.FAST if options.fast else faults.Pace()
    pace = replace(pace, labels=options.labels or pace.labels, dataset=options.dataset)
    drill = story.Drill(Path.cwd(), options.out, pace, model)
    try:
        drill.play()
    finally:
        drill.close()
    print(f"\n{options.out}/timeline.png shows the drill; its decisions and evidence are in the same folder")
    return 0


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    drill = verb(verbs, "drill", _drill, "play the whole loop with real parts: drift, retraining, canary, rollback")
    drill.add_argument("--fast", action="store_true", help="use shorter windows and higher rates, for CI")
    drill.add_argument("--model", help="model to drill (default: the first that gives one class a sample)")
    drill.add_argument(
        "--labels", type=int, help="number of labels that the retraining waits for (default: 250; with --fast 200)"
    )
    drill.add_argument("--dataset", help="data set that supplies drifted texts (default: see docs/loop.md)")
    drill.add_argument("--out", type=Path, default=Path("drill"), help="folder for the result")
