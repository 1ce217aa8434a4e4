"""Text classification: one label per text. Answers and metrics are those of image classification."""

from __future__ import annotations

from typing import ClassVar

from loopline.tasks.base import Content
from loopline.tasks.classification.task import Classification


class Text(Classification):
    """One of k classes for each text, with a probability for each class."""

    name = "text"
    content: ClassVar[Content] = "text"
    question = "Of which kind is this text?"
    use = "Says which of {k} classes a text belongs to, with a probability for each."


TASK = Text()
