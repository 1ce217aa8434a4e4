"""Token ids of a split's texts, in batches of texts of similar length, padded to the longest of each batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from loopline.tasks.tokens import valid
from loopline.training import loop

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from loopline.data.manifest import Split

BATCH = 512  # texts whose n-grams are counted at a time


@dataclass(frozen=True)
class TokenIds:
    """The token ids of one split's texts, ragged, and the classes int64 (n,). pad_id: the padding's id."""

    ids: list[NDArray[np.int64]]
    targets: NDArray[np.int64]
    pad_id: int

    def padded(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids of these texts, (rows, length of the longest)."""
        block = np.full((len(rows), max(len(self.ids[row]) for row in rows)), self.pad_id, np.int64)
        for line, row in enumerate(rows):
            block[line, : len(self.ids[row])] = self.ids[row]
        return block

    def batches(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the ids and classes of BATCH texts at a time, in their order."""
        for start in range(0, len(self.ids), BATCH):
            rows = np.arange(start, min(start + BATCH, len(self.ids)))
            yield self.padded(rows), self.targets[rows]

    def first(self, count: int) -> TokenIds:
        """Return the first `count` texts."""
        return TokenIds(self.ids[:count], self.targets[:count], self.pad_id)

    def data(self, evaluation_batch: int) -> loop.Data:
        """Return the split as the training loop takes it."""
        import torch

        lengths = np.array([len(ids) for ids in self.ids])
        return loop.Data(
            inputs=lambda rows: torch.from_numpy(self.padded(rows.numpy())),
            targets=self.targets,
            lengths=lengths,
            evaluation_batch=evaluation_batch,
        )


def texts(split: Split) -> list[str]:
    """Return the split's texts as the tokenizer takes them."""
    return [valid(text) for text in split.inputs if isinstance(text, str)]


def encode(tokenizer: Tokenizer, split: Split, pad_id: int) -> TokenIds:
    """Return the token ids of a split."""
    padding = tokenizer.padding
    tokenizer.no_padding()
    ids = [np.array(encoding.ids, np.int64) for encoding in tokenizer.encode_batch(texts(split))]
    if padding:
        tokenizer.enable_padding(**padding)
    return TokenIds(ids, np.asarray(split.targets, np.int64), pad_id)
