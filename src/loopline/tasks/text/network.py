"""What all text networks share: temperature and embedding, which are fitted after the training, and the answer of the graph."""

from __future__ import annotations

import torch
from torch import nn


class TextNetwork(nn.Module):
    """A network from token ids int64 (n, l) to logits (n, classes). A subclass makes the parts named below."""

    temperature: torch.Tensor
    dropout: nn.Module
    head: nn.Linear
    projection: nn.Linear

    def features(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the features (n, width) of token ids (n, l), the head's input."""
        raise NotImplementedError

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map token ids (n, l) to logits (n, classes)."""
        logits: torch.Tensor = self.head(self.dropout(self.features(ids)))
        return logits

    def answer(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map token ids (n, l) to probabilities (n, classes) and embedding (n, d)."""
        features = self.features(ids)
        return torch.softmax(self.head(features) / self.temperature, 1), self.projection(features)

    @torch.no_grad()
    def embed(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Set the linear map from features to the embedding."""
        self.projection.weight.copy_(weight)
        self.projection.bias.copy_(bias)


class TextAnswers(nn.Module):
    """A module whose `forward` is `TextNetwork.answer`, as the exporter needs it."""

    def __init__(self, network: TextNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `TextNetwork.answer`."""
        return self.network.answer(ids)
