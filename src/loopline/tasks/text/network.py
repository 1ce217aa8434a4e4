"""What all text networks share."""

from __future__ import annotations

import torch
from torch import nn

from loopline.training.classifier_network import ClassifierNetwork


class TextNetwork(ClassifierNetwork):
    """A network from token ids int64 (n, l), with dropout before the head."""

    dropout: nn.Module

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Map token ids (n, l) to logits (n, classes)."""
        logits: torch.Tensor = self.head(self.dropout(self.features(batch)))
        return logits
