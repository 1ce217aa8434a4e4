"""The other methods, as their authors' libraries have them.

Each gives a figure that is the larger the more it thinks of drift. Where a method has a verdict only, what the verdict is made of.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from benchmarks.drift.samples import Features

Method = Callable[[Features, Features], float]


def ks_softmax(before: Features, now: Features) -> float:
    """Univariate Kolmogorov-Smirnov on the softmax outputs with Bonferroni: the best simple method of Rabanser et al."""
    from scipy.stats import ks_2samp

    pairs = zip(before.answers.T, now.answers.T, strict=True)
    return -min(float(np.log(max(ks_2samp(a, b, method="asymp").pvalue, 1e-300))) for a, b in pairs)


def mmd(before: Features, now: Features) -> float:
    """Kernel maximum mean discrepancy on the embedding, Gaussian kernel of the median distance (Gretton et al., JMLR 2012).

    Permutations only turn it into a p-value; here windows without drift give the threshold.
    """
    from sklearn.metrics.pairwise import euclidean_distances

    x, y = before.embedding, now.embedding
    squared = euclidean_distances(np.concatenate([x, y]), squared=True)
    kernel = np.exp(-squared / np.median(squared[: len(x), : len(x)]))
    a, b, c = kernel[: len(x), : len(x)], kernel[len(x) :, len(x) :], kernel[: len(x), len(x) :]
    within = [(part.sum() - len(part)) / (len(part) * (len(part) - 1)) for part in (a, b)]
    return float((within[0] + within[1] - 2 * c.mean()) * len(x) * len(y) / (len(x) + len(y)))


def evidently(before: Features, now: Features) -> float:
    """Evidently's drift preset on the same signals: share of columns that drifted, by the tests that it picks itself."""
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
    return drifted + float(np.mean(logs)) / 1000  # columns count; among equals the surer one


def kswin(before: Features, now: Features) -> float:
    """River's KSWIN on the top probability, sample by sample: its smallest p-value in the window."""
    from river.drift import KSWIN

    found = KSWIN(alpha=1e-300, window_size=100, stat_size=30, seed=0)
    name = "top_probability" if "top_probability" in now.signals else "mean_score"
    for value in np.nan_to_num(before.signals[name][-100:]):
        found.update(float(value))
    least = 1.0
    for value in np.nan_to_num(now.signals[name]):
        found.update(float(value))
        least = min(least, float(found.p_value))
    return -float(np.log(max(least, 1e-300)))


METHODS: dict[str, Method] = {
    "Evidently preset": evidently,
    "KS on softmax": ks_softmax,
    "MMD on embedding": mmd,
    "KSWIN (river)": kswin,
}
