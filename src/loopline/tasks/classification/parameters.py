"""A classifier's part of params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from loopline.settings import ClassifierFit, ClassLimits, Fraction, ImageLimits, ImageShape, ModelSettings


class ClassificationTrain(ClassifierFit):
    """How an image classifier is trained."""

    width: int = Field(ge=4)
    rotate: float = Field(ge=0)  # degrees
    shift: float = Field(ge=0)  # share of the side
    scale: float = Field(ge=0)  # share
    flip: bool
    erase: Fraction


class ClassificationExpectations(ClassLimits, ImageLimits):
    """Limits for the data of an image classifier."""


class ClassificationSettings(ModelSettings):
    """An image classifier."""

    task: Literal["classification"]
    input: ImageShape
    train: ClassificationTrain
    expectations: ClassificationExpectations


PARAMETERS = ClassificationSettings
