"""The only reader of `monitoring/retraining.yaml`: when a retraining may start, and what it does."""

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
DISPATCH = "dispatch"  # the step that starts a workflow; it alone gets the token for it
Positive = Annotated[float, Field(gt=0)]


class NewLabels(Strict):
    """New labels since the last training that it takes to train again."""

    total: int = Field(ge=0)
    per_class: int = Field(ge=0)


class Step(Strict):
    """One command of a run; a second start of it must do no harm.

    run: words, with places in braces. at: the folder that it runs in. again: where a run that broke off in this step goes on;
    default: here. own_time: it ends by itself, the run's timeout is not for it; only the last step may say so.
    """

    name: str = Field(pattern=r"^[a-z][a-z-]*$")
    run: str
    at: Literal["worktree", "repository"] = "worktree"
    again: str | None = None
    own_time: bool = False

    @field_validator("run")
    @classmethod
    def _places_are_known(cls, run: str) -> str:
        for word in shlex.split(run):
            unknown = {name for _, name, _, _ in Formatter().parse(word) if name is not None} - PLACES
            if unknown:
                raise ValueError(f"{{{unknown.pop()}}} is none of {', '.join(sorted(PLACES))}")
        return run

    def command(self, places: dict[str, str]) -> list[str]:
        """The words with their places filled in. What is filled in never makes two words of one."""
        return [word.format_map(places) for word in shlex.split(self.run)]


class GitHub(Strict):
    """The repository whose `retrain.yml` is started, as owner/name."""

    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    ref: str = "main"
    api: str = Field(default="https://api.github.com", pattern=r"^https?://")


class RetrainingPolicy(Strict):
    """See the comments in `monitoring/retraining.yaml`."""

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
        if early := [step.name for step in self.here[:-1] if step.own_time]:
            raise ValueError(f"step {early[0]}: own_time is for the last step, another would begin after the timeout")
        for number, step in enumerate(self.here):
            if step.again is not None and step.again not in names[:number]:
                raise ValueError(f"step {step.name}: again: {step.again!r} is no step before it")
        if self.where == "github" and self.github is None:
            raise ValueError("where: github needs github: {repository: owner/name}")
        return self

    @property
    def steps(self) -> tuple[Step, ...]:
        """What a run does."""
        if self.where == "github":
            return (Step(name=DISPATCH, run="loopline retrainer --policy {policy} dispatch {run}", at="repository"),)
        return self.here


def load(path: Path = POLICY) -> RetrainingPolicy:
    """Read and check the file. Raises LooplineError with one line for each wrong key."""
    try:
        return RetrainingPolicy.model_validate(read_yaml(path))
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r:.60})" for e in error.errors()]
        raise LooplineError(f"{path} has {len(lines)} wrong setting(s):\n" + "\n".join(lines)) from error
