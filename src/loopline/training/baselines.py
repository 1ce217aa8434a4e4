"""What a model must beat to be worth its weight: the majority class, and a simple classical model, trained on the same split.

Each baseline answers with the outputs of the graph contract, so that the same scorer judges it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.data.manifest import Split
from loopline.lib.arrays import Arrays
from loopline.tasks import detection
from loopline.tasks.spec import ModelSpec
from loopline.training import blobs

MOST_SAMPLES = 10_000  # of the training split: logistic regression on pixels gains little from more
MOST_IMAGES = 300  # likewise, for the detector


def majority(task: str, train: Split, test: Split, shape: tuple[int, int]) -> Arrays:
    """Always the same answer: the class frequencies, or for detection the commonest class in the average box.

    shape: height and width of the model's input in pixels; 0, 0 for text.
    """
    n, classes = len(test.ids), len(train.labels)
    if task != "detection":
        share = np.bincount(np.asarray(train.targets), minlength=classes) / len(train.ids)
        return {"probabilities": np.tile(share, (n, 1))}
    rows = np.concatenate(train.targets)
    share = np.bincount(rows[:, 0].astype(int), minlength=classes) / len(rows)
    width = np.repeat(train.sizes[:, 0], [len(t) for t in train.targets])
    height = np.repeat(train.sizes[:, 1], [len(t) for t in train.targets])
    box = (rows[:, 1:] / np.stack([width, height, width, height], 1)).mean(0) * [shape[1], shape[0], shape[1], shape[0]]
    return {
        "boxes": np.tile(box.astype(np.float32), (n, 1, 1)),
        "scores": np.full((n, 1), share.max(), np.float32),
        "classes": np.full((n, 1), int(share.argmax()), np.int64),
    }


def simple(
    task: str, splits: dict[str, Split], preprocess: Any, test: Arrays, spec: ModelSpec, *, seed: int
) -> tuple[str, Arrays]:
    """The classical model's name and its answers to the test split.

    preprocess: the task's preprocessor. test: the test split's input tensors.
    """
    train = splits["train"]
    if task == "text":
        return ngrams(train, splits["val"], splits["test"])
    most = MOST_IMAGES if task == "detection" else MOST_SAMPLES
    rows = np.sort(np.random.default_rng(seed).permutation(len(train.ids))[:most])
    images = preprocess([train.inputs[row] for row in rows])["image"]
    if task == "detection":
        assert spec.image is not None, "a detector's specification has an image input"
        sizes = {row: (int(train.sizes[row, 0]), int(train.sizes[row, 1])) for row in rows}
        boxes = [detection.to_input(train.targets[row], *sizes[row], spec.image) for row in rows]
        return "contrast blobs with logistic regression", blobs.detect(images, boxes, test["image"], len(spec.labels))
    targets = np.asarray(train.targets)[rows]
    answers = _logistic(_shrink(images), targets, _shrink(test["image"]), len(spec.labels))
    return "logistic regression on pixels", {"probabilities": answers}


def _shrink(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    step = max(1, -(-max(images.shape[1:3]) // 28))
    height, width = (side - side % step for side in images.shape[1:3])
    parts = images[:, :height, :width].astype(np.float32)
    pooled = parts.reshape(len(images), height // step, step, width // step, step, -1).mean((2, 4))
    return np.asarray(pooled.reshape(len(images), -1) / 255, np.float32)


def _logistic(train: Any, targets: NDArray[Any], test: Any, classes: int, *, c: float = 1.0) -> NDArray[np.float64]:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model: Any = LogisticRegression(C=c, max_iter=200)
    if hasattr(train, "tocsr"):  # TF-IDF is sparse and scaled as it is; SAGA gets as far in a tenth of the time
        model.set_params(solver="saga", max_iter=50, random_state=0)
    else:
        model = make_pipeline(StandardScaler(), model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so many steps are enough for a baseline
        model.fit(train, targets)
    found = np.zeros((test.shape[0], classes))
    found[:, model.classes_] = model.predict_proba(test)
    return found


def ngrams(train: Split, val: Split, test: Split) -> tuple[str, Arrays]:
    """TF-IDF and logistic regression, on words (1-2) or characters (1-4), whichever does better on the validation split."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    tried = []
    choices: dict[str, dict[str, Any]] = {
        "words": {"ngram_range": (1, 2), "token_pattern": r"(?u)\S+"},
        "characters": {"analyzer": "char_wb", "ngram_range": (1, 4), "max_features": 50_000},
    }
    for name, options in choices.items():
        vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **options)
        features = vectorizer.fit_transform(train.inputs)
        held = vectorizer.transform([*val.inputs, *test.inputs])
        found = _logistic(features, np.asarray(train.targets), held, len(train.labels), c=10.0)
        accuracy = (found[: len(val.ids)].argmax(1) == val.targets).mean()
        tried.append((float(accuracy), name, found[len(val.ids) :]))
    _, name, probabilities = max(tried, key=lambda row: row[0])
    return f"TF-IDF on {name} with logistic regression", {"probabilities": probabilities}
