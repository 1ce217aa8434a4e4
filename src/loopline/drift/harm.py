"""Does a difference hurt? The model's quality estimated without labels, and bounded with them.

Without labels each sample counts with the quality that samples as sure as it had on the reference. Two ways: *confidence*, the mean
of the calibrated confidence, and *atc*, the share of samples surer than a threshold that on the reference is passed by as many
as are right (Garg et al., Leveraging unlabeled data to predict out-of-distribution performance, ICLR 2022). Both are
sums over the bins that drift is counted in, so a recording rule has them too.

A model that is sure and wrong fools both. But at least as many answers are wrong as the predicted classes' shares are off the true
ones'. Where they moved, and something else moved further, no new mix of the same classes explains it: then the true shares are
thought to be as before, and the *classes*' shift is loss.
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

# Edges of confidence beside those of equal mass: drift goes where the reference has few samples
GRID = np.linspace(0.05, 0.95, 19)
SURE = 0.75  # score of the predicted classes from which their shift counts
DOUBT = 0.5  # standard errors of a quality that must be lost beyond `max_loss`: few samples say little
PRIOR = 10.0  # rows' weight of what the confidence itself says, in a bin
MIXTURE = 50.0  # labels for which the confidence sequence is tightest


def confidence_edges(edges: Edges, threshold: float) -> Edges:
    """The edges of a confidence's bins: of equal mass, a grid over all of it, and the threshold of `atc`."""
    return rounded(np.concatenate([edges, GRID, [threshold]]))


def atc_threshold(confidence: NDArray[np.float64], quality: NDArray[np.float64]) -> float:
    """The confidence that a share of the samples as large as the mean quality has, or more. NaN counts as the least."""
    ordered = np.sort(np.nan_to_num(confidence, nan=-inf))
    place = round((1 - float(quality.mean())) * len(ordered))
    found = float(ordered[min(place, len(ordered) - 1)])
    return found if np.isfinite(found) else 0.0


def weights(
    confidence: NDArray[np.float64], quality: NDArray[np.float64], edges: Edges, threshold: float
) -> dict[str, tuple[float, ...]]:
    """For each way to estimate, the quality of a sample in each bin, the last for NaN.

    confidence and quality: of the reference's rows (n,), both 0 to 1. A bin's rows are mixed with what a straight line through all
    rows says of its confidence: few or no rows may be in it.
    """
    known = np.isfinite(confidence)
    spread = float(confidence[known].var()) if known.any() else 0.0
    slope = float(np.cov(confidence[known], quality[known], bias=True)[0, 1]) / spread if spread else 0.0
    # Where nearly all are right a line through them says nothing of low confidence: there the confidence speaks for itself.
    line = (
        np.poly1d([1.0, 0.0])
        if not 0.5 <= slope <= 2
        else np.poly1d([slope, quality[known].mean() - slope * confidence[known].mean()])
    )
    ends = np.concatenate([[0.0], edges, [1.0]])
    middles = np.clip((ends[:-1] + ends[1:]) / 2, 0, 1)
    prior = np.append(np.clip(line(middles), 0, 1), 0.0)
    bins = bin_of(confidence, edges)
    rows, total = (np.bincount(bins, of, minlength=len(prior)) for of in (np.ones(len(bins)), quality))
    mixed = (total + PRIOR * prior) / (rows + PRIOR)
    sure = np.append((ends[:-1] >= threshold).astype(float), 0.0)
    return {"confidence": tuple(float(f"{x:.4g}") for x in mixed), "atc": tuple(map(float, sure))}


def estimate(counts: NDArray[Any], weight: tuple[float, ...]) -> float:
    """The window's quality. NaN for an empty one."""
    total = counts.sum()
    return float(counts @ np.array(weight) / total) if total else float("nan")


@dataclass(frozen=True)
class Harm:
    """What a window is thought to cost. estimates: way -> quality. classes: loss by the predicted classes. limit: more is harm."""

    estimates: dict[str, float]
    classes: float
    loss: float
    limit: float

    @property
    def way(self) -> str:
        """What the loss was taken from, in words."""
        return "the shift of predicted classes" if 0 < self.classes == self.loss else "the mean of confidence and atc"

    @property
    def harmful(self) -> bool:
        """Is it?"""
        return self.loss > self.limit


def judge(counts: WindowCounts, reference: Reference) -> Harm | None:
    """The window's harm; None where the signal of confidence has no verdict."""
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
    sure = CLASS in counts and statistic.score(counts[CLASS], reference.signals[CLASS], reference) > SURE
    if not sure or max(moved.values(), default=0.0) <= classes:
        classes = 0.0
    doubt = DOUBT * sqrt(quality.value * (1 - quality.value) / float(max(row.sum() for row in counts.values())))
    loss = max(quality.value - float(np.mean(list(estimates.values()))), classes)
    return Harm(estimates, classes, loss, quality.max_loss + doubt)


def confidence_sequence(right: float, n: float, alpha: float = 0.05) -> tuple[float, float]:
    """Bounds on the accuracy that hold at all times at once, with probability 1 - alpha: look as often as you like.

    right of n labelled answers were right. The normal mixture for sums bounded by 1/2 around their mean (Howard et al.,
    Time-uniform, nonparametric, nonasymptotic confidence sequences, Annals of Statistics 2021, equation 14).
    """
    if n <= 0:
        return 0.0, 1.0
    variance, mixture = n / 4, MIXTURE / 4
    radius = sqrt((variance + mixture) * log((variance + mixture) / (mixture * alpha**2))) / n
    return max(0.0, right / n - radius), min(1.0, right / n + radius)


def label_shift(confusion: NDArray[np.float64], predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """The classes' shares in a window, if nothing but they changed: (classes,), by black-box shift estimation.

    confusion: (classes, classes) counts of (predicted, true) on the reference. predicted: counts of the window's predictions.
    Lipton et al., Detecting and correcting for label shift with black box predictors, ICML 2018; solved by least squares, then
    no share is left under 0.
    """
    joint = confusion / confusion.sum()
    window = predicted / predicted.sum()
    ratio, *_ = np.linalg.lstsq(joint, window, rcond=1e-3)
    shares = np.clip(ratio, 0, None) * joint.sum(0)
    return np.asarray(shares / shares.sum(), np.float64)
