"""`loopline tune`: search for better settings of a model."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from loopline.cli.verbs import Verbs, verb
from loopline.errors import LooplineError

if TYPE_CHECKING:
    from loopline.tuning.search import Search
    from loopline.tuning.trial import Outcome, TrialJob


class Clock:
    """Says what each trial gave, and how long the search takes."""

    def __init__(self, name: str, trials: int) -> None:
        """Start the clock."""
        self.name, self.trials, self.done, self.best = name, trials, 0, -1.0
        self.start = time.monotonic()

    def told(self, job: TrialJob, outcome: Outcome, search: Search) -> None:
        """Print a line for a trial that ended."""
        from loopline.training.progress_bar import duration

        self.done += 1
        left = self.trials - job.number - 1
        each = (time.monotonic() - self.start) / self.done
        shown = outcome.reason.splitlines()[0][:120] if outcome.reason else f"{search.headline} {outcome.value:.4f}"
        if outcome.state == "complete":
            self.best = max(self.best, outcome.value or 0.0)
        best = f", the best is {self.best:.4f}" if self.best >= 0 else ""
        print(
            f"{self.name}: trial {job.number} {outcome.state} after {len(outcome.curve)} epochs: {shown}{best}, "
            f"{duration(each * max(left, 0))} left",
            flush=True,
        )


def _tune(options: argparse.Namespace) -> int:
    try:
        import optuna  # noqa: F401 - only to see that it is there
    except ImportError as error:
        raise LooplineError("loopline tune needs Optuna: pip install 'loopline[train,tune]'") from error
    from loopline import settings
    from loopline.lib import locks
    from loopline.stages import stage_files
    from loopline.tuning import comparison, mlflow_runs, search_report, workers
    from loopline.tuning.search import Search

    everything, model = settings.model(options.model)
    path, folder = stage_files.manifest(options.model), stage_files.scratch("tune", options.model)
    comparison.check(path)
    trials = options.trials or (model.tune.trials if model.tune else 0)
    search = Search(options.model, model, everything.seed, path, folder, Clock(options.model, trials).told)
    out = options.out or Path("reports/tune") / options.model
    engine = workers.on_ray if options.engine == "ray" else workers.in_processes
    try:
        with locks.held(folder / "lock", wait=False), engine(options.workers) as search.run:
            search.go(trials)
            judged = comparison.compare(search)
    except BlockingIOError as error:
        raise LooplineError(f"another `loopline tune {options.model}` runs here: wait until it ends") from error
    search_report.write(out, search, judged)
    mlflow_runs.record(search, judged, out)
    print(f"{search.name}: {search_report.summary(search, judged)}\nSee {out}/report.md")
    return 0


def add(verbs: Verbs) -> None:
    """Add this verb to the command line."""
    tune = verb(
        verbs,
        "tune",
        _tune,
        "search for better settings of a model, and judge them on data that the search did not see",
    )
    tune.add_argument("model", help="name under models: in params.yaml, with a space under `tune`")
    tune.add_argument("--trials", type=_positive, help="trials (default: tune.trials of the model)")
    tune.add_argument("--workers", type=_positive, default=1, help="trials that run at a time, each on one core")
    tune.add_argument(
        "--engine",
        choices=("process", "ray"),
        default="process",
        help="place where trials run: processes of this machine, or Ray (the cluster of RAY_ADDRESS, else one on this machine)",
    )
    tune.add_argument("--out", type=Path, help="folder of the report (default: reports/tune/MODEL)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: give 1 or more")
    return value
