"""Text classification: one label per text. Answers and metrics are those of image classification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from loopline.lib.arrays import Arrays
from loopline.tasks.base import Content
from loopline.tasks.classification.task import Classification
from loopline.tasks.spec import ModelSpec


class Text(Classification):
    """One of k classes for each text, with a probability for each class."""

    name = "text"
    content: ClassVar[Content] = "text"
    question = "Of which kind is this text?"
    use = "Says which of {k} classes a text belongs to, with a probability for each."

    def preprocessor(self, spec: ModelSpec, folder: Path) -> Callable[[Sequence[Any]], Arrays]:
        """Return the function from texts to `{"ids": int64 (n, length)}`, padded to the longest text of the batch.

        It uses `folder/tokenizer.json`. An empty text has only its two edges; a long one is cut after `spec.text.max_tokens`.
        """
        from tokenizers import Tokenizer

        assert spec.text is not None, "a text model's specification has a text input"
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(spec.text.max_tokens)
        tokenizer.enable_padding(pad_id=spec.text.pad_id)

        def ids(texts: Sequence[str]) -> Arrays:
            encoded = tokenizer.encode_batch([_valid(text) for text in texts])
            return {"ids": np.array([encoding.ids for encoding in encoded], np.int64).reshape(len(encoded), -1)}

        return ids


def _valid(text: str) -> str:
    """Replace lone surrogates, which JSON can hold and UTF-8 cannot, by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


TASK = Text()
