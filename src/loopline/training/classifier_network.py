"""What all classifiers share: temperature and embedding, which are fitted after the training, and the answer of the graph."""

from __future__ import annotations

import torch
from torch import nn


class ClassifierNetwork(nn.Module):
    """A network from a batch of images or token ids to logits. A subclass makes the parts named below."""

    temperature: torch.Tensor
    head: nn.Linear
    projection: nn.Linear

    def features(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the features (n, width) of a batch (n, ...), the head's input."""
        raise NotImplementedError

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Map a batch (n, ...) to logits (n, classes)."""
        logits: torch.Tensor = self.head(self.features(batch))
        return logits

    def answer(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map a batch (n, ...) to probabilities (n, classes) and embedding (n, d)."""
        features = self.features(batch)
        return torch.softmax(self.head(features) / self.temperature, 1), self.projection(features)

    @torch.no_grad()
    def embed(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Set the linear map from features to the embedding: (d, width) and (d,)."""
        self.projection.weight.copy_(weight)
        self.projection.bias.copy_(bias)


class Answers(nn.Module):
    """A module whose `forward` is the network's `answer`, as the exporter needs it."""

    def __init__(self, network: ClassifierNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ClassifierNetwork.answer`."""
        return self.network.answer(batch)
