"""The other methods, from their authors' libraries.

Each returns a figure that is larger the more evidence of drift it has: for a method that gives only a verdict, what decides it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from benchmarks.drift.samples import Features

Method = Callable[[Features, Features], float]


def ks_softmax(before: Features, now: Features) -> float:
    """Return -log of the least p-value of Kolmogorov-Smirnov tests, one for each softmax output.

    With Bonferroni's correction this is the best simple method of Rabanser et al.
    """
    from scipy.stats import ks_2samp

    pairs = zip(before.answers.T, now.answers.T, strict=True)
    return -min(float(np.log(max(ks_2samp(a, b, method="asymp").pvalue, 1e-300))) for a, b in pairs)


def mmd(before: Features, now: Features) -> float:
    """Return the maximum mean discrepancy of the embedding (Gretton et al., JMLR 2012). The Gaussian kernel has the median distance.

    Permutations would only turn it into a p-value; here windows without drift give the threshold.
    """
    from sklearn.metrics.pairwise import euclidean_distances

    x, y = before.embedding, now.embedding
    squared = euclidean_distances(np.concatenate([x, y]), squared=True)
    kernel = np.exp(-squared / np.median(squared[: len(x), : len(x)]))
    a, b, c = kernel[: len(x), : len(x)], kernel[len(x) :, len(x) :], kernel[: len(x), len(x) :]
    within = [(part.sum() - len(part)) / (len(part) * (len(part) - 1)) for part in (a, b)]
    return float((within[0] + within[1] - 2 * c.mean()) * len(x) * len(y) / (len(x) + len(y)))


def evidently(before: Features, now: Features) -> float:
    """Return the number of signals that drift by Evidently's preset, which picks the tests. Smaller p-values break ties."""
    import pandas as pd
    from evidently.legacy.calculations.stattests import get_stattest
    from evidently.legacy.core import ColumnType

    drifted, logs = 0, []
    for name in before.signals:
        kind = ColumnType.Categorical if name == "predicted_class" else ColumnType.Numerical
        a, b = (pd.Series(side.signals[name]).dropna() for side in (before, now))
        if not len(b) or not len(a):
            drifted, logs = drifted + 1, [*logs, 700.0]
            continue
        test = get_stattest(a, b, kind, None)
        threshold = test.default_threshold
        result = test(a, b, kind, threshold)
        drifted += bool(result.drifted)
        small = result.drift_score if "p_value" in test.display_name else 1 - min(1.0, result.drift_score)
        logs.append(-float(np.log(max(small, 1e-300))))
    return drifted + float(np.mean(logs)) / 1000


def kswin(before: Features, now: Features) -> float:
    """Return -log of the smallest p-value in the window of River's KSWIN, which watches the top probability sample by sample."""
    from river.drift import KSWIN

    detector = KSWIN(alpha=1e-300, window_size=100, stat_size=30, seed=0)
    name = "top_probability" if "top_probability" in now.signals else "mean_score"
    for value in np.nan_to_num(before.signals[name][-100:]):
        detector.update(float(value))
    least = 1.0
    for value in np.nan_to_num(now.signals[name]):
        detector.update(float(value))
        least = min(least, float(detector.p_value))
    return -float(np.log(max(least, 1e-300)))


METHODS: dict[str, Method] = {
    "Evidently preset": evidently,
    "KS on softmax": ks_softmax,
    "MMD on embedding": mmd,
    "KSWIN (river)": kswin,
}
