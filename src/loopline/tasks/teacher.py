"""`train.teacher` in params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Teacher(BaseModel):
    """A finished model from which a training learns, beside the labels.

    model: name of a model in params.yaml, whose bundle is the teacher. version: of that bundle, at least its first 12 characters, so
    that another teacher makes another training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str
    version: str = Field(min_length=12)


class ClassifierTeacher(Teacher):
    """A teacher whose probabilities are learnt (Hinton et al., "Distilling the knowledge in a neural network", 2015).

    temperature: by which the teacher's logits are divided. weight: of its answers in the loss; the labels have the rest.
    unlabelled: file of more samples, which only the teacher answers, as `loopline data unlabelled` writes it.
    """

    temperature: float = Field(default=2.0, gt=0)
    weight: float = Field(default=0.8, ge=0, le=1)
    unlabelled: str | None = None
