"""Small texts of two classes, and odd ones."""

import numpy as np

from loopline.data.manifest import Split

WORDS = {"good": ["fine", "great", "lovely", "superb"], "bad": ["poor", "awful", "dull", "weak"]}
ODD = ["", " ", "a\u0085b", "\U0001f600\U0001f600", "\u4f60\u597d", "\ud800", "word " * 5000, "fine"]


def split(count, seed):
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 2, count)
    inputs = [
        f"the film {i} was {generator.choice(WORDS[('bad', 'good')[t]])} and {i % 7}" for i, t in enumerate(targets)
    ]
    return Split([str(i) for i in range(count)], inputs, targets, np.zeros((count, 2), np.int32), ("bad", "good"))
