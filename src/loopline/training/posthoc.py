"""Fit what follows the weights: the temperature that calibrates probabilities, and a small embedding for drift."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the T that minimises the mean of -log softmax(logits / T)[target], between 0.05 and 20 (Guo et al., ICML 2017).

    logits: (n, classes) of the validation split; targets: int64 (n,). Golden-section search on log T.
    """
    import torch

    double = logits.double()

    def loss(log_t: float) -> float:
        return torch.nn.functional.cross_entropy(double / torch.tensor(log_t).exp(), targets).item()

    low, high, ratio = -3.0, 3.0, (5**0.5 - 1) / 2
    for _ in range(40):  # .618^40 of 6 is far below float32's resolution
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(torch.tensor((low + high) / 2).exp())


def principal_components(features: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the linear map to `count` principal components, each of unit variance: weight (count, width), bias (count,).

    features: float32 (n, width) of the training split. A component's largest weight is positive, which fixes its sign.
    If `features` has a lower rank than `count`, the remaining outputs are zero.
    """
    import torch

    mean = features.double().mean(0)
    centred = features.double() - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(features))
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    scale = torch.where(values > 1e-9 * values[0], values.clamp_min(1e-30).rsqrt(), 0.0)
    weight = torch.zeros(count, features.shape[1], dtype=torch.float64)
    weight[: len(values)] = (vectors * scale).T
    return weight.float(), (-weight @ mean).float()
