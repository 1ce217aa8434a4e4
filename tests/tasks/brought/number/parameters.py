"""The task's part of params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from loopline.settings import Fit, ImageLimits, ImageShape, ModelSettings


class NumberFit(Fit):
    """How the regression is fitted."""

    ridge: float = Field(gt=0)


class NumberSettings(ModelSettings):
    """A linear regression on pixels."""

    task: Literal["number"]
    input: ImageShape
    train: NumberFit
    expectations: ImageLimits


PARAMETERS = NumberSettings
