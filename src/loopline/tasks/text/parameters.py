"""A text classifier's part of params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from loopline.settings import Adopt, ClassifierFit, ClassLimits, Fraction, ModelSettings, Strict, TextLimits, train_kind


class TextShape(Strict):
    """The number of tokens that the model takes. The rest of a text is cut off."""

    max_tokens: int = Field(ge=4)


class TextTrain(ClassifierFit):
    """How a text classifier is trained.

    architecture: `ngrams`, trained from scratch, or the pretrained encoder to fine-tune: see `encoder_sources.find`. weights_sha256:
    of its weights, or None for any. frozen_layers: first layers of the encoder that stay as they are. layers: number of its layers
    that are kept, evenly spaced, or None for all. tokenizer, vocabulary, word_dropout: of n-grams; an encoder brings its own.
    """

    architecture: str = "ngrams"
    weights_sha256: str | None = None
    frozen_layers: int = Field(default=0, ge=0)
    layers: int | None = Field(default=None, ge=1)
    tokenizer: Literal["auto", "words", "characters"]
    vocabulary: int = Field(ge=100)
    word_dropout: Fraction

    @model_validator(mode="after")
    def _for_encoders(self) -> TextTrain:
        if self.layers and self.architecture == "ngrams":
            raise ValueError("layers: n-grams have none: choose another train.architecture")
        if self.teacher and self.architecture == "ngrams":
            raise ValueError(
                "teacher: in trials n-grams gained nothing from a teacher: choose another train.architecture"
            )
        return self


class TextExpectations(ClassLimits, TextLimits):
    """Limits for the data of a text classifier."""


class TextSettings(ModelSettings):
    """A text classifier."""

    task: Literal["text"]
    input: TextShape
    train: Annotated[Annotated[TextTrain, Tag("fit")] | Annotated[Adopt, Tag("adopt")], Discriminator(train_kind)]
    expectations: TextExpectations


PARAMETERS = TextSettings
