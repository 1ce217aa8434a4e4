"""Estimate the harm of drift: the model's quality without labels, and its bounds with labels.

Without labels, the quality of each sample is estimated from samples of the same confidence in the reference. There are two
estimates: *confidence* is the mean of the confidence, calibrated on the reference; *atc* is the share of samples above a
threshold, chosen so that on the reference this share equals the accuracy (Garg et al., Leveraging unlabeled data to predict
out-of-distribution performance, ICLR 2022). Both are sums over the bins in which drift is counted, so the recording rules compute
them too.

A model that is wrong with high confidence defeats both. But the share of wrong answers is at least the distance between the shares
of the predicted and the true classes. If the predicted classes moved and another signal moved further, a new mix of the same
classes does not explain it. The true shares are then assumed unchanged, and the shift of the predicted *classes* counts as loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.drift import statistic
from loopline.drift.reference import Edges, Reference, bin_of, rounded
from loopline.drift.statistic import WindowCounts
from loopline.tasks.signals import CLASS

# Extra edges for the confidence, because drift moves it to where the reference has few samples and so few edges.
GRID = np.linspace(0.05, 0.95, 19)
CLASS_DRIFT = 0.75  # drift score of the predicted classes above which their shift counts as loss
DOUBT = 0.5  # standard errors of the quality, added to `max_loss`, because an estimate from few samples is uncertain
PRIOR = 10.0  # weight of the prior in a bin, in rows
MIXTURE = 50.0  # number of labels at which the confidence sequence is tightest


def confidence_edges(edges: Edges, threshold: float) -> Edges:
    """Return the edges of the bins of the confidence: `edges` of equal mass, those of `GRID`, and the threshold of `atc`."""
    return rounded(np.concatenate([edges, GRID, [threshold]]))


def atc_threshold(confidence: NDArray[np.float64], quality: NDArray[np.float64]) -> float:
    """Return the threshold that a share of the samples equal to the mean quality reaches. NaN counts as the lowest confidence."""
    ordered = np.sort(np.nan_to_num(confidence, nan=-inf))
    place = round((1 - float(quality.mean())) * len(ordered))
    threshold = float(ordered[min(place, len(ordered) - 1)])
    return threshold if np.isfinite(threshold) else 0.0


def weights(
    confidence: NDArray[np.float64], quality: NDArray[np.float64], edges: Edges, threshold: float
) -> dict[str, tuple[float, ...]]:
    """Return for each estimate the quality of a sample in each bin. The last bin is for NaN.

    confidence and quality: those of the reference's rows, (n,), both from 0 to 1. The mean quality of a bin is mixed with a prior,
    because the bin may have few rows or none. The prior is a straight line through the quality of all rows over confidence.
    """
    finite = np.isfinite(confidence)
    spread = float(confidence[finite].var()) if finite.any() else 0.0
    slope = float(np.cov(confidence[finite], quality[finite], bias=True)[0, 1]) / spread if spread else 0.0
    # If nearly all rows are right, the line is unreliable at low confidence, so the confidence itself is the prior.
    line = (
        np.poly1d([1.0, 0.0])
        if not 0.5 <= slope <= 2
        else np.poly1d([slope, quality[finite].mean() - slope * confidence[finite].mean()])
    )
    ends = np.concatenate([[0.0], edges, [1.0]])
    middles = np.clip((ends[:-1] + ends[1:]) / 2, 0, 1)
    prior = np.append(np.clip(line(middles), 0, 1), 0.0)
    bins = bin_of(confidence, edges)
    rows, total = (np.bincount(bins, values, minlength=len(prior)) for values in (np.ones(len(bins)), quality))
    mixed = (total + PRIOR * prior) / (rows + PRIOR)
    above = np.append((ends[:-1] >= threshold).astype(float), 0.0)
    return {"confidence": tuple(float(f"{x:.4g}") for x in mixed), "atc": tuple(map(float, above))}


def estimate(counts: NDArray[Any], weight: tuple[float, ...]) -> float:
    """Return the estimated quality of a window; NaN if it is empty."""
    total = counts.sum()
    return float(counts @ np.array(weight) / total) if total else float("nan")


@dataclass(frozen=True)
class Harm:
    """The estimated harm of a window. estimates: name -> quality. classes: loss by the predicted classes. limit: the largest loss
    that is no harm."""

    estimates: dict[str, float]
    classes: float
    loss: float
    limit: float

    @property
    def way(self) -> str:
        """The estimate that gave the loss, in words."""
        return "the shift of predicted classes" if 0 < self.classes == self.loss else "the mean of confidence and atc"

    @property
    def harmful(self) -> bool:
        """Whether the loss is over its limit."""
        return self.loss > self.limit


def judge(counts: WindowCounts, reference: Reference) -> Harm | None:
    """Return the harm of a window; None if the signal of confidence has too few samples for a verdict."""
    quality, rows = reference.quality, counts.get(reference.quality.signal)
    if rows is None or rows.sum() < reference.least:
        return None
    estimates = {way: estimate(rows, weight) for way, weight in quality.weights.items()}
    moved = {
        name: statistic.excess(counts[name], signal)
        for name, signal in reference.signals.items()
        if name in counts and counts[name].sum() >= reference.least
    }
    classes = moved.pop(CLASS, 0.0)
    drifted = CLASS in counts and statistic.score(counts[CLASS], reference.signals[CLASS], reference) > CLASS_DRIFT
    if not drifted or max(moved.values(), default=0.0) <= classes:
        classes = 0.0
    doubt = DOUBT * sqrt(quality.value * (1 - quality.value) / float(max(row.sum() for row in counts.values())))
    loss = max(quality.value - float(np.mean(list(estimates.values()))), classes)
    return Harm(estimates, classes, loss, quality.max_loss + doubt)


def confidence_sequence(right: float, n: float, alpha: float = 0.05) -> tuple[float, float]:
    """Return bounds on the accuracy. They hold at all times at once with probability 1 - alpha, however often they are read.

    right: number of right answers among the n labelled ones. Formula: the normal mixture for sums bounded by 1/2 around their mean
    (Howard et al., Time-uniform, nonparametric, nonasymptotic confidence sequences, Annals of Statistics 2021, equation 14).
    """
    if n <= 0:
        return 0.0, 1.0
    variance, mixture = n / 4, MIXTURE / 4
    radius = sqrt((variance + mixture) * log((variance + mixture) / (mixture * alpha**2))) / n
    return max(0.0, right / n - radius), min(1.0, right / n + radius)


def label_shift(confusion: NDArray[np.float64], predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Estimate the shares of the classes in a window, (classes,), on the assumption that nothing else changed.

    confusion: (classes, classes) counts of (predicted, true) on the reference. predicted: counts of the window's predictions.
    Black-box shift estimation (Lipton et al., Detecting and correcting for label shift with black box predictors, ICML 2018) by
    least squares; negative shares are set to 0.
    """
    joint = confusion / confusion.sum()
    window = predicted / predicted.sum()
    ratio, *_ = np.linalg.lstsq(joint, window, rcond=1e-3)
    shares = np.clip(ratio, 0, None) * joint.sum(0)
    return np.asarray(shares / shares.sum(), np.float64)
