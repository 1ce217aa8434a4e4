"""A text classifier's part of params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from loopline.settings import ClassifierFit, ClassLimits, Fraction, ModelSettings, Strict, TextLimits


class TextShape(Strict):
    """The number of tokens that the model takes. The rest of a text is cut off."""

    max_tokens: int = Field(ge=4)


class TextTrain(ClassifierFit):
    """How a text classifier is trained."""

    tokenizer: Literal["auto", "words", "characters"]
    vocabulary: int = Field(ge=100)
    word_dropout: Fraction


class TextExpectations(ClassLimits, TextLimits):
    """Limits for the data of a text classifier."""


class TextSettings(ModelSettings):
    """A text classifier."""

    task: Literal["text"]
    input: TextShape
    train: TextTrain
    expectations: TextExpectations


PARAMETERS = TextSettings
