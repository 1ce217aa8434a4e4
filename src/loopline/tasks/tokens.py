"""Turn texts into the token ids that a model reads, in training, calibration, parity check and server alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from loopline.lib.arrays import Arrays
from loopline.tasks.spec import TextInput


def tokenizer(text: TextInput, folder: Path) -> Callable[[Sequence[str]], Arrays]:
    """Return the function from texts to `{"ids": int64 (n, length)}`, padded to the longest text of the batch.

    It uses `folder/tokenizer.json`. An empty text has only what the tokenizer adds to any text, perhaps no id at all. A long text
    is cut after `text.max_tokens`.
    """
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded.enable_truncation(text.max_tokens)
    loaded.enable_padding(pad_id=text.pad_id)

    def ids(texts: Sequence[str]) -> Arrays:
        encoded = loaded.encode_batch([valid(each) for each in texts])
        return {"ids": np.array([encoding.ids for encoding in encoded], np.int64).reshape(len(encoded), -1)}

    return ids


def valid(text: str) -> str:
    """Replace lone surrogates, which JSON can hold and UTF-8 cannot, by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
