"""A linear probe: logistic regression on the features of a pretrained network that stays as it is. Few labels suffice for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from loopline.training import loop

if TYPE_CHECKING:
    from loopline.tasks.classification.image_network import ImageNetwork
    from loopline.tasks.classification.parameters import ClassificationTrain

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # C of the regression: the inverse of the penalty


def fit(
    network: ImageNetwork,
    train: loop.Data,
    val: loop.Data,
    settings: ClassificationTrain,
    log: Callable[[int, dict[str, float]], None],
) -> list[dict[str, float]]:
    """Set the head of `network` to the regression with the least loss on `val`. Returns a row for each strength of the penalty.

    A row has strength, train_loss, val_loss and val_accuracy. The penalties come from strong to weak.
    """
    from sklearn.linear_model import LogisticRegression

    network.to(loop.device()).eval()
    features, val_features = (loop.predict(network.features, data).double() for data in (train, val))
    # Of length 1 on average, so that the strengths suit any network
    scale = float(features.norm(dim=1).mean().clamp_min(1e-12)) / np.sqrt(features.shape[1])
    history, best = [], (np.inf, torch.zeros(0), torch.zeros(0))
    for number, strength in enumerate(STRENGTHS, 1):
        regression = LogisticRegression(
            C=strength, max_iter=2000, class_weight="balanced" if settings.class_weights else None
        ).fit((features / scale).numpy(), train.targets)
        weight, bias = _all_classes(regression, network.head.out_features)
        weight /= scale
        row = {"strength": strength, "train_loss": _loss(features, train, weight, bias)}
        logits = val_features @ weight.T + bias
        row["val_loss"] = _loss(val_features, val, weight, bias)
        row["val_accuracy"] = float((logits.argmax(1) == torch.from_numpy(val.targets)).double().mean())
        if row["val_loss"] < best[0]:
            best = (row["val_loss"], weight, bias)
        history.append(row)
        log(number, row)
    with torch.no_grad():
        network.head.weight.copy_(best[1])
        network.head.bias.copy_(best[2])
    return history


def _all_classes(regression: Any, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The regression's weight (classes, features) and bias (classes,).

    sklearn has one row for two classes, and none for a class without samples.
    """
    weight: NDArray[np.float64] = np.zeros((classes, regression.coef_.shape[1]))
    bias = np.full(classes, -30.0)
    rows, intercepts = regression.coef_, regression.intercept_
    if len(rows) == 1:
        rows, intercepts = np.concatenate([-rows, rows]) / 2, np.concatenate([-intercepts, intercepts]) / 2
    weight[regression.classes_], bias[regression.classes_] = rows, intercepts
    return torch.from_numpy(weight), torch.from_numpy(bias)


def _loss(features: torch.Tensor, data: loop.Data, weight: torch.Tensor, bias: torch.Tensor) -> float:
    targets = torch.from_numpy(data.targets)
    return float(torch.nn.functional.cross_entropy(features @ weight.T + bias, targets))
