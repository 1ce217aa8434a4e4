"""A detector's part of params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from loopline.settings import Adopt, ClassLimits, Fit, Fraction, ImageLimits, ImageShape, ModelSettings, train_kind
from loopline.tasks.teacher import Teacher


class DetectorTeacher(Teacher):
    """A teacher whose feature maps are learnt, by ultralytics' distillation. gain: weight in the loss; its default is ultralytics'."""

    gain: float = Field(default=6.0, gt=0)


class DetectionTrain(Fit):
    """How a detector is trained."""

    teacher: DetectorTeacher | None = None
    architecture: str
    activation: Literal["silu", "relu"]
    final_learning_rate: float = Field(gt=0, le=1)  # as a share of learning_rate
    warmup_epochs: float = Field(ge=0)
    weight_decay: float = Field(ge=0)
    class_weights: bool
    mosaic: Fraction
    close_mosaic: int = Field(ge=0)
    flip_horizontal: Fraction
    flip_vertical: Fraction
    shift: Fraction
    scale: float = Field(ge=0)
    hue: Fraction
    saturation: Fraction
    brightness: Fraction


class DetectionExpectations(ClassLimits, ImageLimits):
    """Limits for the data of a detector."""


class DetectionSettings(ModelSettings):
    """An object detector."""

    task: Literal["detection"]
    input: ImageShape
    train: Annotated[Annotated[DetectionTrain, Tag("fit")] | Annotated[Adopt, Tag("adopt")], Discriminator(train_kind)]
    expectations: DetectionExpectations


PARAMETERS = DetectionSettings
