"""`tune` in params.yaml: what `loopline tune` searches."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Frozen(BaseModel):
    """Refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Range(Frozen):
    """Every value from `low` to `high`: whole numbers only if the setting is one. log: equal factors are equally likely."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not self.low < self.high:
            raise ValueError("low must be less than high")
        if self.log and self.low <= 0:
            raise ValueError("log: true needs a low above 0")
        return self


class Choices(Frozen):
    """A few values."""

    choices: tuple[bool | int | float | str | None, ...] = Field(min_length=2)


class Tune(Frozen):
    """What `loopline tune` searches: see docs/tuning.md.

    space: a key of the model's `train` or `input`, such as `train.learning_rate` -> its values. trials: trainings at most.
    generation: trials that are proposed together, from the results of the generations before. rungs: epochs after which the worse
    half of the trials stops.
    """

    space: dict[str, Range | Choices] = Field(min_length=1)
    trials: int = Field(default=24, ge=2)
    generation: int = Field(default=4, ge=1)
    rungs: tuple[Annotated[int, Field(ge=1)], ...] = ()
