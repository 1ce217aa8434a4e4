"""Propose trials by generations, stop the worse ones at rungs, and keep what each gave.

Optuna's tree-structured Parzen estimator (Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011) proposes a generation
from the results of those before, which it is told in the order of the trials. A trial stops at a rung if it is worse than the median
of the earlier generations there (Golovin et al., Google Vizier, 2017). So the table of trials depends on seed, space, data and code,
and not on the number of workers, on their timing, or on what was killed.

The first trial has the values of params.yaml.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from loopline import tasks
from loopline.errors import LooplineError
from loopline.lib import machine
from loopline.settings import ModelSettings
from loopline.tuning import space, trial
from loopline.tuning.space import Values
from loopline.tuning.trial import Outcome, TrialJob
from loopline.tuning.workers import Finished, Work

if TYPE_CHECKING:
    from optuna import Study, Trial

LEAST_AT_A_RUNG = 4  # figures whose median stops a trial
LEAST_FOR_IMPORTANCE = 10  # complete trials
ONE_PROCESS = {"train.workers": 1}  # a trial has one core
RANDOM_TRIALS = 8  # before the estimator takes over


@dataclass(frozen=True)
class Row:
    """A row of the table of trials. folder: holds the weights of the first and of the best trial; None if the values are invalid."""

    number: int
    values: Values
    outcome: Outcome
    folder: Path | None


@dataclass
class Search:
    """A search. told: called with each trial that ended, in that order. run: from jobs to their outcomes, in any order."""

    name: str
    model: ModelSettings
    seed: int
    manifest: Path
    folder: Path
    told: Callable[[TrialJob, Outcome, Search], None]
    run: Callable[[Work], Finished] = field(init=False)
    rows: list[Row] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """Check the space, and make the study."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.distributions = space.distributions(self.name, self.model)
        sampler = optuna.samplers.TPESampler(seed=self.seed, n_startup_trials=RANDOM_TRIALS)
        self.study: Study = optuna.create_study(direction="maximize", sampler=sampler)
        self.data, self.code = hashlib.sha256(self.manifest.read_bytes()).hexdigest(), trial.code()

    @property
    def key(self) -> str:
        """A sha256 of all that decides the table: settings and space, number of trials, seed, data, code, machine."""
        return _sha256(
            [self.model.model_dump(mode="json"), len(self.rows), self.seed, self.data, self.code, machine.kind()]
        )

    @property
    def headline(self) -> str:
        """The name of the figure."""
        return tasks.find(self.model.task).headline

    def importances(self) -> dict[str, float]:
        """How much of the figure's variance each setting explains; empty if too few trials are complete.

        PED-ANOVA (Watanabe, Bansal and Hutter, 2023).
        """
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        values = [row.outcome.value for row in self.rows if row.outcome.state == "complete"]
        if len(values) < LEAST_FOR_IMPORTANCE or len(set(values)) < 2 or len(self.distributions) < 2:
            return {}
        return dict(get_param_importances(self.study, evaluator=PedAnovaImportanceEvaluator()))

    def go(self, trials: int) -> list[Row]:
        """Run the search and return the table. Raises LooplineError if no trial gave a figure."""
        assert self.model.tune
        while len(self.rows) < trials:
            self._generation(min(self.model.tune.generation, trials - len(self.rows)))
        if self.best() is None:
            raise LooplineError(f"none of {len(self.rows)} trials gave a figure: {self.rows[0].outcome.reason}")
        return self.rows

    def best(self) -> Row | None:
        """Return the complete trial with the highest figure, the first of several; None if no trial is complete."""
        complete = [row for row in self.rows if row.outcome.state == "complete"]
        return max(complete, key=lambda row: (row.outcome.value, -row.number), default=None)

    def _generation(self, count: int) -> None:
        asked = [self._ask(number) for number in range(len(self.rows), len(self.rows) + count)]
        cutoffs = self._cutoffs()
        jobs = {number: self._job(number, values, cutoffs) for number, (_, values) in enumerate(asked, len(self.rows))}
        outcomes = self._outcomes([job for job in jobs.values() if isinstance(job, TrialJob)])
        for number, (proposed, values) in enumerate(asked, len(self.rows)):
            job = jobs[number]
            outcome = outcomes[number] if isinstance(job, TrialJob) else job
            self.rows.append(Row(number, values, outcome, self._folder(job) if isinstance(job, TrialJob) else None))
            self._tell(proposed, outcome)
        self._clear()

    def restore(self, row: Row) -> Path:
        """Return the folder of a complete trial's weights. If a shorter or longer search removed them, they are trained again."""
        assert row.folder
        weights = row.folder / trial.TRAINED
        if not (weights / "model.safetensors").exists():
            job = TrialJob(**json.loads((row.folder / trial.JOB).read_text(encoding="utf-8")))
            (row.folder / trial.OUTCOME).unlink()
            list(self.run([(job, row.folder)]))
        return weights

    def _ask(self, number: int) -> tuple[Trial | None, Values]:
        """Return Optuna's trial and its values. The first has those of params.yaml; if they are outside the space, it has no trial."""
        if number == 0:
            values = space.current(self.model, self.distributions)
            if not space.contains(self.distributions, values):
                return None, values
            self.study.enqueue_trial(values)
        proposed = self.study.ask(self.distributions)
        return proposed, {key: _short(value) for key, value in proposed.params.items()}

    def _tell(self, proposed: Trial | None, outcome: Outcome) -> None:
        from optuna.trial import TrialState

        if proposed is None:
            return
        for rung in self._rungs(outcome):
            proposed.report(outcome.curve[rung - 1], rung)
        state = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}[
            outcome.state
        ]
        self.study.tell(proposed, outcome.value if outcome.state == "complete" else None, state=state)

    def _job(self, number: int, values: Values, cutoffs: dict[str, float]) -> TrialJob | Outcome:
        """Return the job, or the outcome of values that are invalid together."""
        try:
            changed = space.with_values(self.model, values | ONE_PROCESS)
            settings = changed.model_dump(mode="json", exclude={"tune"})
        except LooplineError as error:
            return Outcome(state="failed", reason=str(error))
        return TrialJob(
            number=number,
            model=self.name,
            settings=settings,
            seed=self.seed,
            manifest=str(self.manifest),
            code=self.code,
            cutoffs=cutoffs,
        )

    def _folder(self, job: TrialJob) -> Path:
        """The folder of a trial, named after all that decides its outcome, so that a search which was killed finds it again."""
        content = {key: value for key, value in asdict(job).items() if key not in ("number", "manifest")}
        return self.folder / _sha256([content, self.data, machine.kind()])[:16]

    def _outcomes(self, jobs: list[TrialJob]) -> dict[int, Outcome]:
        """Run the jobs that have no outcome yet."""
        outcomes = {job.number: outcome for job in jobs if (outcome := trial.read(self._folder(job)))}
        waiting: dict[Path, TrialJob] = {}
        for job in jobs:  # the same values may be proposed twice
            if job.number not in outcomes:
                waiting.setdefault(self._folder(job), job)
        for job, outcome in self.run([(job, folder) for folder, job in waiting.items()]):
            outcomes[job.number] = outcome
            self.told(job, outcome, self)
        return {job.number: outcomes.get(job.number) or outcomes[waiting[self._folder(job)].number] for job in jobs}

    def _cutoffs(self) -> dict[str, float]:
        """Epoch -> the median figure of the trials so far that reached it."""
        assert self.model.tune
        cutoffs = {}
        for rung in self.model.tune.rungs:
            figures = [row.outcome.curve[rung - 1] for row in self.rows if len(row.outcome.curve) >= rung]
            if len(figures) >= LEAST_AT_A_RUNG:
                cutoffs[str(rung)] = median(figures)
        return cutoffs

    def _rungs(self, outcome: Outcome) -> Iterable[int]:
        assert self.model.tune
        return (rung for rung in self.model.tune.rungs if rung <= len(outcome.curve))

    def _clear(self) -> None:
        """Remove the weights of trials that are neither the first nor the best. They can be made again."""
        best = self.best()
        keep = {self.rows[0].folder, *([best.folder] if best else [])}
        for row in self.rows:
            if row.folder and row.folder not in keep:
                for name in (trial.TRAINED, trial.CHECKPOINTS):
                    shutil.rmtree(row.folder / name, ignore_errors=True)


def table(rows: list[Row]) -> str:
    """The trials as CSV. It holds no times, so that equal searches give equal bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = list(rows[0].values)
    writer.writerow(["trial", "state", "value", "epoch", "epochs", *keys, "reason"])
    for row in rows:
        outcome = row.outcome
        values = [row.values[key] for key in keys]
        writer.writerow(
            [row.number, outcome.state, outcome.value, outcome.epoch, len(outcome.curve), *values, outcome.reason]
        )
    return text.getvalue()


def _short(value: Any) -> Any:
    """A value as people copy it: trained again with it, the model is the same."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
