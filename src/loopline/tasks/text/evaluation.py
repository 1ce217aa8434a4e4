"""The baselines of the text classifier, and examples of its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loopline.data.manifest import Split
from loopline.lib.arrays import Arrays
from loopline.tasks.spec import ModelSpec
from loopline.training import baselines, pictures, plots


def majority(train: Split, test: Split, spec: ModelSpec) -> Arrays:
    """Return the shares of the classes as the probabilities of each sample."""
    return baselines.class_frequencies(train, test)


def simple(
    splits: dict[str, Split],
    preprocess: Any,
    test: Arrays,
    spec: ModelSpec,
    *,
    seed: int,
) -> tuple[str, Arrays]:
    """Fit a logistic regression on TF-IDF of words (1-2) or characters (1-4), whichever is better on the validation split."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    train, val = splits["train"], splits["val"]

    candidates = []
    choices: dict[str, dict[str, Any]] = {
        "words": {"ngram_range": (1, 2), "token_pattern": r"(?u)\S+"},
        "characters": {"analyzer": "char_wb", "ngram_range": (1, 4), "max_features": 50_000},
    }
    for name, options in choices.items():
        vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **options)
        features = vectorizer.fit_transform(train.inputs)
        held_out = vectorizer.transform([*val.inputs, *splits["test"].inputs])
        answers = baselines.logistic(features, np.asarray(train.targets), held_out, len(train.labels), c=10.0)
        accuracy = (answers[: len(val.ids)].argmax(1) == val.targets).mean()
        candidates.append((float(accuracy), name, answers[len(val.ids) :]))
    _, name, probabilities = max(candidates, key=lambda row: row[0])
    return f"TF-IDF on {name} with logistic regression", {"probabilities": probabilities}


def draw_examples(path: Path, outputs: Arrays, test: Split, spec: ModelSpec) -> None:
    """Draw the first samples that were classified right, and the most confident mistakes."""
    plots.text_examples(path, *pictures.right_and_wrong(outputs, test, spec, str))
