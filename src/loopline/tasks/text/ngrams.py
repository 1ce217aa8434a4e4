"""The text model's network: embeddings of the n-grams of tokens, summed over the text, beside a small convolution.

The graph itself finds the n-grams. The hash of an n-gram's token ids points into `slots`, and the slot to a row of the
embedding table. The row's entry in `keys` is the hash that it belongs to: an n-gram that the training texts lack does not
match it and counts as nothing. (Hashed n-grams: Joulin et al., "Bag of tricks for efficient text classification", 2017;
they do without `keys`, which costs 2 points on sentiment.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from loopline.tasks.text.network import TextNetwork
from loopline.tasks.text.tokenizing import EDGE, PAD, UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable

SLOTS = 2**18  # a sixth of 40,000 n-grams share a slot with a commoner one, and are left out
MOST_ROWS = 40_000
PRIME = 2**31 - 1  # hashes are below it
# Factors of the first token, the second, ...: any odd numbers
FACTORS = [1103515245, 1597334677, 2654435761, 3812015801, 2246822519]
LEAST_COUNT = 2  # an n-gram of two or more tokens must occur in that many texts
DIMENSION = 64
CHANNELS = 128  # of the convolution


def windows(x: torch.Tensor, *, before: int, after: int) -> torch.Tensor:
    """Return each position of (n, l, ...) with its neighbours (n, l, before + 1 + after, ...), zeros beyond the ends."""
    length, size = x.shape[1], before + 1 + after
    padded = functional.pad(x, (0, 0) * (x.ndim - 2) + (before, after))
    places = torch.arange(length, device=x.device)[:, None] + torch.arange(size, device=x.device)
    return padded.index_select(1, places.flatten()).reshape(x.shape[0], length, size, *x.shape[2:])


def hashes(ids: torch.Tensor, longest: int) -> torch.Tensor:
    """Return hashes (n, l, longest) of the 1-gram, 2-gram, ... that start at each token of ids (n, l); 0 past the end."""
    tokens = windows(ids, before=0, after=longest - 1)
    factors = torch.tensor(FACTORS[:longest], device=ids.device)
    return torch.where(tokens != PAD, (tokens * factors).cumsum(2) % PRIME, 0)


@dataclass(frozen=True)
class Dictionary:
    """The n-grams of the training texts that get an embedding, the commonest first. Row 0 stands for all others.

    slots: int32 (SLOTS,), row for each hash modulo SLOTS. keys: int32 (rows,), the row's hash.
    evidence: float32 (rows, classes), log P(n-gram | class), add-one smoothed, less its mean over the classes.
    """

    slots: NDArray[np.int32]
    keys: NDArray[np.int32]
    evidence: NDArray[np.float32]

    def classify(self, ids: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
        """Return the answers (n,) of naive Bayes with equal priors, for token ids (n, l)."""
        hashed = hashes(torch.from_numpy(ids), longest).numpy()
        row = self.slots[hashed % SLOTS]
        row = np.where(self.keys[row] == hashed, row, 0)
        answers: NDArray[np.int64] = self.evidence[row].sum((1, 2)).argmax(1)
        return answers


def count(batches: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]], longest: int, classes: int) -> Dictionary:
    """Return the n-grams in batches of token ids (n, l) and targets (n,), with their evidence for each class.

    An n-gram counts once in a text (Wang and Manning, "Baselines and bigrams", 2012).
    """
    parts = []
    for ids, targets in batches:
        of_batch = hashes(torch.from_numpy(ids), longest).numpy()
        for order in range(longest):
            text, position = np.nonzero(of_batch[:, :, order])
            pairs = np.unique(np.stack([of_batch[text, position, order], text], 1), axis=0)
            parts.append(np.stack([pairs[:, 0], targets[pairs[:, 1]], np.full(len(pairs), order)], 1))
    table = np.concatenate(parts)
    keys, first, row, counts = np.unique(table[:, 0], return_index=True, return_inverse=True, return_counts=True)
    common = np.flatnonzero((counts >= LEAST_COUNT) | (table[first, 2] == 0))
    common = common[np.lexsort((keys[common], -counts[common]))]
    _, owners = np.unique(keys[common] % SLOTS, return_index=True)  # of the n-grams in one slot, the commonest
    kept = common[np.sort(owners)][:MOST_ROWS]

    by_class = np.zeros((len(keys), classes))
    np.add.at(by_class, (row, table[:, 1]), 1.0)
    smoothed = by_class[kept] + 1
    evidence = np.log(smoothed / smoothed.sum(0))
    evidence -= evidence.mean(1, keepdims=True)
    slots = np.zeros(SLOTS, np.int32)
    slots[keys[kept] % SLOTS] = np.arange(1, len(kept) + 1)
    return Dictionary(
        slots=slots,
        keys=np.concatenate([[0], keys[kept]]).astype(np.int32),
        evidence=np.concatenate([np.zeros((1, classes)), evidence]).astype(np.float32),
    )


class NgramNetwork(TextNetwork):
    """The network from token ids to logits. Temperature and embedding are fitted after the training."""

    slots: torch.Tensor
    keys: torch.Tensor

    def __init__(
        self, *, rows: int, longest: int, convolve: bool, classes: int, embedding: int, word_dropout: float = 0.0
    ) -> None:
        """rows: rows of the embedding table. longest: most tokens in an n-gram. convolve: whether to add the convolution."""
        super().__init__()
        self.longest, self.word_dropout = longest, word_dropout
        self.register_buffer("slots", torch.zeros(SLOTS, dtype=torch.int32))
        self.register_buffer("keys", torch.zeros(rows, dtype=torch.int32))
        self.register_buffer("temperature", torch.ones(()))
        self.table = nn.Embedding(rows, DIMENSION, padding_idx=0)
        nn.init.normal_(self.table.weight[1:], std=0.05)
        width = DIMENSION
        self.context: nn.Module | None = None
        if convolve:
            self.context = Context()
            width += 2 * CHANNELS
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(width, classes)
        nn.init.zeros_(self.head.bias)
        self.projection = nn.Linear(width, embedding).requires_grad_(False)

    @torch.no_grad()
    def know(self, dictionary: Dictionary, *, informed: bool) -> None:
        """Load the n-grams. informed: whether to start as the naive Bayes classifier of their evidence.

        Wang and Manning's classifiers start there. With more classes than dimensions, it is the nearest such classifier in
        that many dimensions.
        """
        self.slots.copy_(torch.from_numpy(dictionary.slots))
        self.keys.copy_(torch.from_numpy(dictionary.keys))
        if informed:
            evidence = torch.from_numpy(dictionary.evidence)
            vectors = torch.linalg.eigh(evidence.double().T @ evidence.double()).eigenvectors.float()
            main = vectors.flip(1)[:, : min(DIMENSION, evidence.shape[1] - 1)]
            self.table.weight[:, : main.shape[1]] = evidence @ main
            self.head.weight[:, : main.shape[1]] = main

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows (n, l, longest) of the table for token ids (n, l); 0 for an unknown n-gram."""
        hashed = hashes(ids, self.longest)
        row = self.slots[hashed % SLOTS].long()
        return torch.where(self.keys[row] == hashed, row, 0)

    def features(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the features (n, width) of token ids (n, l), the head's input."""
        if self.training and self.word_dropout:
            hidden = (torch.rand(ids.shape, device=ids.device) < self.word_dropout) & (ids > EDGE)
            ids = torch.where(hidden, UNKNOWN, ids)
        tokens = self.table(self.rows(ids)).sum(2)
        real = (ids != PAD).float()[:, :, None]
        count = real.sum(1).clamp_min(1)
        bag: torch.Tensor = tokens.sum(1) / count.sqrt()
        if self.context is None:
            return bag
        return torch.cat([bag, self.context(tokens, real, count)], 1)


class Context(nn.Module):
    """Two convolutions over three tokens each, then the mean and the maximum over the text.

    They are written as matrix products, which dynamic quantization turns into 8-bit ones; it has no fast convolution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3 * DIMENSION, CHANNELS)
        self.second = nn.Linear(3 * CHANNELS, CHANNELS)
        self.dropout = nn.Dropout(0.3)

    def forward(self, tokens: torch.Tensor, real: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """Return (n, 2 * CHANNELS). tokens: (n, l, DIMENSION). real: (n, l, 1), 0 for padding, else 1. count: (n, 1)."""
        x = torch.relu(self.first(_triples(self.dropout(tokens)))) * real
        x = (x + torch.relu(self.second(_triples(self.dropout(x))))) * real
        return torch.cat([x.amax(1), x.sum(1) / count], 1)


def _triples(x: torch.Tensor) -> torch.Tensor:
    """Map (n, l, d) to (n, l, 3 d): each token's vector between its neighbours'."""
    return windows(x, before=1, after=1).flatten(2)
