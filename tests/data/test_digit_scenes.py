"""The embedded digit scenes."""

import hashlib
import io
from itertools import islice

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from loopline.data.embedded import digit_scenes


def test_scenes_are_the_same_each_time() -> None:
    twice = [[hashlib.sha256(s.image or b"").hexdigest() for s in islice(digit_scenes.read(), 20)] for _ in range(2)]
    assert twice[0] == twice[1]
    assert len(set(twice[0])) == 20


def test_no_digit_image_serves_two_splits() -> None:
    _, labels = load_digits(return_X_y=True)
    shared = digit_scenes._share(labels, np.random.default_rng(0))
    everything = np.concatenate(list(shared.values()))
    assert sorted(everything) == list(range(len(labels)))
    assert len(shared["test"]) > len(shared["val"]) > 10 * 10


def test_boxes_hold_a_digit_and_keep_apart() -> None:
    for scene in islice(digit_scenes.read(), 20):
        assert scene.split == "train"
        assert scene.image is not None
        assert Image.open(io.BytesIO(scene.image)).size == (128, 128)
        assert scene.boxes
        for number, box in enumerate(scene.boxes):
            assert box.label in "0123456789"
            assert 0 <= box.x1 < box.x2 <= 128
            assert 0 <= box.y1 < box.y2 <= 128
            assert not any(digit_scenes._touch(box, other) for other in scene.boxes[:number])
