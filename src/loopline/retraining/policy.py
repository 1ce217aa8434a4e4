"""Read the retraining policy `monitoring/retraining.yaml`: the limits that the guard applies, and the steps that `runs` executes."""

from __future__ import annotations

import shlex
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from loopline.errors import LooplineError
from loopline.settings import Strict, read_yaml

POLICY = Path("monitoring/retraining.yaml")
PLACES = frozenset({"model", "run", "version", "repository", "worktree", "journal", "policy"})
DISPATCH = "dispatch"  # the step that starts the GitHub workflow; no other step gets the token for it
Positive = Annotated[float, Field(gt=0)]


class NewLabels(Strict):
    """How many new labels since the last training a retraining needs: in total, and of each class."""

    total: int = Field(ge=0)
    per_class: int = Field(ge=0)


class Step(Strict):
    """One command of a run. It must be safe to start twice.

    run: the command, with names from PLACES in braces. at: the folder in which it runs. again: the step from which a run that was
    interrupted in this step resumes (default: this step). gate: this step judges the challenger, and `loopline retrainer run` ends
    with it. own_time: the run's timeout does not apply; only for the last step.
    """

    name: str = Field(pattern=r"^[a-z][a-z-]*$")
    run: str
    at: Literal["worktree", "repository"] = "worktree"
    again: str | None = None
    gate: bool = False
    own_time: bool = False

    @field_validator("run")
    @classmethod
    def _places_are_known(cls, run: str) -> str:
        for word in shlex.split(run):
            unknown = {name for _, name, _, _ in Formatter().parse(word) if name is not None} - PLACES
            if unknown:
                raise ValueError(f"{{{unknown.pop()}}} is not a place: use {', '.join(sorted(PLACES))}")
        return run

    def command(self, places: dict[str, str]) -> list[str]:
        """The command's words with the places filled in. A value never splits a word in two."""
        return [word.format_map(places) for word in shlex.split(self.run)]


class GitHub(Strict):
    """The repository whose `retrain.yml` is started, as owner/name."""

    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    ref: str = "main"
    api: str = Field(default="https://api.github.com", pattern=r"^https?://")


class RetrainingPolicy(Strict):
    """The retraining policy. The comments in `monitoring/retraining.yaml` explain each key."""

    alerts: tuple[str, ...] = Field(min_length=1)
    window: str
    cooldown_hours: float = Field(ge=0)
    longest_cooldown_hours: Positive
    runs_per_month: int = Field(ge=0)
    labels: NewLabels
    approval: bool
    patience_hours: Positive
    look_again_seconds: Positive
    timeout_minutes: Positive
    start_from: Literal["scratch", "champion"]
    where: Literal["here", "github"]
    github: GitHub | None = None
    here: tuple[Step, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _steps_lead_back(self) -> RetrainingPolicy:
        names = [step.name for step in self.here]
        if len(set(names)) < len(names):
            raise ValueError("two steps have the same name")
        if sum(step.gate for step in self.here) > 1:
            raise ValueError("two steps have gate: true, but a run has one gate")
        if early := [step.name for step in self.here[:-1] if step.own_time]:
            raise ValueError(
                f"step {early[0]}: only the last step may have own_time; a later one would begin after the timeout"
            )
        for number, step in enumerate(self.here):
            if step.again is not None and step.again not in names[:number]:
                raise ValueError(f"step {step.name}: again: {step.again!r} is not an earlier step")
        if self.where == "github" and self.github is None:
            raise ValueError("where: github needs github: {repository: owner/name}")
        return self

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of a run: those of the file, or the one that starts the GitHub workflow."""
        if self.where == "github":
            return (Step(name=DISPATCH, run="loopline retrainer --policy {policy} dispatch {run}", at="repository"),)
        return self.here

    def until_gate(self) -> RetrainingPolicy:
        """This policy with only the steps of `here` up to the gate, whatever `where` says. Raises LooplineError without a gate."""
        # A file that was written before the key `gate` existed may still call its gate `evidence`.
        gate = next((step for step in self.here if step.gate), None) or next(
            (step for step in self.here if step.name == "evidence"), None
        )
        if gate is None:
            raise LooplineError(
                "no step of the retraining policy is the gate: add `gate: true` to the step under `here:` that judges the challenger"
            )
        return self.model_copy(update={"where": "here", "here": self.here[: self.here.index(gate) + 1]})


def load(path: Path = POLICY) -> RetrainingPolicy:
    """Read and check the policy. Raises LooplineError with one line for each wrong key."""
    try:
        return RetrainingPolicy.model_validate(read_yaml(path))
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r:.60})" for e in error.errors()]
        raise LooplineError(f"{path} has {len(lines)} wrong setting(s):\n" + "\n".join(lines)) from error
