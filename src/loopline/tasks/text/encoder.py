"""A Transformer encoder as BERT has it (Devlin et al., 2019), with the class of a text from the mean of its tokens' states.

The graph makes the mask itself: tokens with the padding id count for nothing. It is finite, because a text of padding alone must
not give NaN. Linear layers are matrix products with constants, which dynamic quantization turns into 8-bit ones; the products of
attention are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from loopline.tasks.text.network import TextNetwork

MASKED = -1e4  # added to the score of a padding token: its softmax is 0
INITIAL = 0.02  # standard deviation of a new layer's weights
Activation = Literal["gelu", "gelu_tanh", "relu"]
# Of the tokens' states: their mean; or the first, through a linear map and tanh (BERT's heads) or ReLU (DistilBERT's)
Pooling = Literal["mean", "first tanh", "first relu"]
ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """The sizes of an encoder.

    vocabulary: number of token ids. width: of a token's state. inner: width inside a layer's two linear maps. positions: rows of the
    position table. epsilon: of the normalisation. pad_id: the padding token. counted: whether positions count the real tokens, from
    pad_id + 1, as RoBERTa's do; else they are 0, 1, 2, ...
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    epsilon: float
    activation: Activation
    pad_id: int
    counted: bool

    @property
    def max_tokens(self) -> int:
        """The most tokens of a text."""
        return self.positions - (self.pad_id + 1 if self.counted else 0)


class Layer(nn.Module):
    """Attention, then two linear maps, each added to its input and normalised."""

    def __init__(self, shape: EncoderShape, dropout: float) -> None:
        super().__init__()
        self.heads, self.activation = shape.heads, ACTIVATIONS[shape.activation]
        self.query, self.key, self.value, self.mix = (nn.Linear(shape.width, shape.width) for _ in range(4))
        self.norm = nn.LayerNorm(shape.width, shape.epsilon)
        self.inner, self.outer = nn.Linear(shape.width, shape.inner), nn.Linear(shape.inner, shape.width)
        self.last_norm = nn.LayerNorm(shape.width, shape.epsilon)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map states (n, l, width) to states. mask: added to the scores, (n, 1, 1, l)."""
        query, key, value = (self._split(linear(x)) for linear in (self.query, self.key, self.value))
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3]) + mask
        mixed = self.dropout(torch.softmax(scores, 3)) @ value
        x = self.norm(x + self.dropout(self.mix(mixed.transpose(1, 2).flatten(2))))
        out: torch.Tensor = self.last_norm(x + self.dropout(self.outer(self.activation(self.inner(x)))))
        return out

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """(n, l, width) to (n, heads, l, width / heads)."""
        n, length, width = x.shape
        return x.reshape(n, length, self.heads, width // self.heads).transpose(1, 2)


class EncoderNetwork(TextNetwork):
    """An encoder with a head."""

    def __init__(
        self, shape: EncoderShape, *, classes: int, embedding: int, pooling: Pooling = "mean", dropout: float = 0.1
    ) -> None:
        """embedding: size of the embedding for drift. pooling: of the tokens' states to a text's features."""
        super().__init__()
        self.shape, self.pooling = shape, pooling
        self.register_buffer("temperature", torch.ones(()))
        self.words = nn.Embedding(shape.vocabulary, shape.width)
        self.places = nn.Embedding(shape.positions, shape.width)
        self.norm = nn.LayerNorm(shape.width, shape.epsilon)
        self.layers = nn.ModuleList(Layer(shape, dropout) for _ in range(shape.layers))
        self.pooler = None if pooling == "mean" else nn.Linear(shape.width, shape.width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(shape.width, classes)
        self.projection = nn.Linear(shape.width, embedding).requires_grad_(False)
        nn.init.normal_(self.head.weight, std=INITIAL)
        nn.init.zeros_(self.head.bias)

    def freeze(self, layers: int) -> None:
        """Keep the embeddings and the first `layers` layers as they are; 0 freezes nothing."""
        parts = [self.words, self.places, self.norm, *self.layers[:layers]] if layers else []
        for part in parts:
            part.requires_grad_(requires_grad=False)

    def features(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the pooled states (n, width) of token ids (n, l)."""
        tokens = (
            ids != self.shape.pad_id
        ).long()  # of whole numbers, because a GPU's sum of others is not deterministic
        real = tokens.float()
        if self.shape.counted:
            places = tokens.cumsum(1) * tokens + self.shape.pad_id
        else:
            places = torch.arange(ids.shape[1], device=ids.device)[None]
        x = self.dropout(self.norm(self.words(ids) + self.places(places)))
        mask = ((1 - real) * MASKED)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        if self.pooler is not None:
            first = self.pooler(x[:, 0])
            return torch.tanh(first) if self.pooling == "first tanh" else torch.relu(first)
        weights = real[:, :, None]
        mean: torch.Tensor = (x * weights).sum(1) / weights.sum(1).clamp_min(1)
        return mean
