"""A classifier's part of params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from loopline.settings import (
    Adopt,
    ClassifierFit,
    ClassLimits,
    Fraction,
    ImageLimits,
    ModelSettings,
    Strict,
    train_kind,
)

RESIDUAL, LITE0, TIMM = "residual", "efficientnet-lite0", "timm:"
IMAGENET = "imagenet"  # in place of a path: the published weights of an architecture
LEAST_SIDE = 32  # pixels: a pretrained network halves its input five times


class ClassificationShape(Strict):
    """Height and width in pixels to which every image is resized, and its number of channels.

    auto: the size of the images that the pretrained weights learnt from.
    """

    height: Annotated[int, Field(ge=8)] | Literal["auto"]
    width: Annotated[int, Field(ge=8)] | Literal["auto"]
    channels: Literal[1, 3]


class ClassificationTrain(ClassifierFit):
    """How an image classifier is trained.

    architecture: `residual`, `efficientnet-lite0`, or `timm:` and a name of timm. pretrained: `imagenet`, or the path of a
    safetensors file. weights_sha256: of that file, or None for any. probe: the pretrained network stays as it is, and only its head
    is fitted. width: of the residual network.
    """

    architecture: str = Field(default=RESIDUAL, pattern=rf"^({RESIDUAL}|{LITE0}|{TIMM}[\w.-]+)$")
    weights_sha256: str | None = None
    probe: bool = False
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
    input: ClassificationShape
    train: Annotated[
        Annotated[ClassificationTrain, Tag("fit")] | Annotated[Adopt, Tag("adopt")], Discriminator(train_kind)
    ]
    expectations: ClassificationExpectations

    @model_validator(mode="after")
    def _fits(self) -> ClassificationSettings:
        if isinstance(self.train, Adopt):
            return self
        sides, residual = (self.input.height, self.input.width), self.train.architecture == RESIDUAL
        if residual and "auto" in sides:
            raise ValueError(
                "input.height and input.width: auto is the size of pretrained weights: give pixels for a residual network"
            )
        if residual and self.train.pretrained == IMAGENET:
            raise ValueError(
                f"train.pretrained: there are no weights of {IMAGENET} for the residual network: use {LITE0} or timm:NAME"
            )
        if not residual and self.input.channels != 3:
            raise ValueError(f"input.channels: {self.train.architecture} takes 3; grey images become colour images")
        if not residual and any(side != "auto" and side < LEAST_SIDE for side in sides):
            raise ValueError(
                f"input.height and input.width: {self.train.architecture} needs {LEAST_SIDE} pixels or more, or auto"
            )
        if self.train.probe and not self.train.pretrained:
            raise ValueError("train.probe needs train.pretrained: the features of an untrained network say little")
        if self.train.probe and self.train.teacher:
            raise ValueError("train.teacher: a probe learns from labels only: set train.probe to false")
        return self


PARAMETERS = ClassificationSettings
