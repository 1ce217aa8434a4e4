"""Baselines that a model must beat: the commonest answer, and a simple classical model trained on the same split.

Each baseline returns the same outputs as the model's graph, so the same scorer measures it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.data.manifest import Split
from loopline.lib.arrays import Arrays


def class_frequencies(train: Split, test: Split) -> Arrays:
    """Return the shares of the classes in training as the probabilities of each test sample."""
    share = np.bincount(np.asarray(train.targets), minlength=len(train.labels)) / len(train.ids)
    return {"probabilities": np.tile(share, (len(test.ids), 1))}


def some_images(train: Split, preprocess: Any, most: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Draw at most `most` training images; return their rows, ascending, and their pixels uint8 (n, h, w, c)."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(train.ids))[:most])
    return rows, preprocess([train.inputs[row] for row in rows])["image"]


def shrink(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Average the pixels to at most 28 x 28, as rows of shares (n, h * w * c)."""
    step = max(1, -(-max(images.shape[1:3]) // 28))
    height, width = (side - side % step for side in images.shape[1:3])
    parts = images[:, :height, :width].astype(np.float32)
    pooled = parts.reshape(len(images), height // step, step, width // step, step, -1).mean((2, 4))
    return np.asarray(pooled.reshape(len(images), -1) / 255, np.float32)


def logistic(train: Any, targets: NDArray[Any], test: Any, classes: int, *, c: float = 1.0) -> NDArray[np.float64]:
    """Fit a logistic regression and return its probabilities on `test`: (n, classes). c: the inverse of the regularisation."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model: Any = LogisticRegression(C=c, max_iter=200)
    if hasattr(train, "tocsr"):  # TF-IDF is sparse and already scaled; SAGA is as good in a tenth of the time
        model.set_params(solver="saga", max_iter=50, random_state=0)
    else:
        model = make_pipeline(StandardScaler(), model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # these steps are enough for a baseline
        model.fit(train, targets)
    probabilities = np.zeros((test.shape[0], classes))
    probabilities[:, model.classes_] = model.predict_proba(test)
    return probabilities
