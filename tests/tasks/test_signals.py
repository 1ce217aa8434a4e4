"""Drift signals, bins and slices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from loopline.tasks import signals, slices
from loopline.tasks.spec import ImageInput, ModelSpec, TextInput

finite = st.floats(-1e6, 1e6)


def test_text_signals_distinguish_a_long_sure_text_from_a_short_unsure_one():
    spec = ModelSpec(task="text", labels=("a", "b"), text=TextInput(max_tokens=8))
    outputs = {"probabilities": np.array([[0.99, 0.01], [0.5, 0.5]]), "embedding": np.zeros((2, 1))}
    ids = np.array([[2, 5, 1, 2], [2, 1, 2, 0]])
    by_name = signals.signals({"ids": ids}, outputs, spec, ["A long text, 2!", "é"])
    assert by_name["characters"].tolist() == [15, 1]
    assert by_name["bytes"].tolist() == [15, 2]
    assert by_name["tokens"].tolist() == [4, 3]
    assert by_name["unknown"].tolist() == [1 / 4, 1 / 3]
    assert [by_name[name][0] * 15 for name in ("upper", "digits", "punctuation", "not_ascii")] == [1, 1, 2, 0]
    assert by_name["not_ascii"][1] == 1
    assert by_name["entropy"][0] < by_name["entropy"][1]
    assert by_name["margin"][1] == 0


def test_what_a_request_does_not_carry_has_no_signal():
    spec = ModelSpec(task="text", labels=("a", "b"), text=TextInput(max_tokens=8))
    outputs = {"probabilities": np.array([[0.9, 0.1]]), "embedding": np.zeros((1, 1))}
    by_name = signals.signals({"ids": np.array([[2, 5, 2]])}, outputs, spec)
    assert not by_name.keys() & {"characters", "bytes", "upper"}


@pytest.mark.parametrize("channels", [1, 3])
def test_image_signals_agree_with_their_formulas(channels):
    images = np.random.default_rng(0).integers(0, 256, (5, 300, 200, channels), dtype=np.uint8)  # more than a chunk
    by_name = signals.of_images(images)
    grey = images @ np.array([0.299, 0.587, 0.114]) if channels == 3 else images[..., 0].astype(float)
    inner = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] - 4 * grey[:, 1:-1, 1:-1]
    np.testing.assert_allclose(by_name["brightness"], grey.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(by_name["contrast"], grey.std((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(by_name["sharpness"], inner.var((1, 2)), rtol=1e-4)
    if channels == 3:
        brightest, darkest = images.max(3).astype(float), images.min(3)
        np.testing.assert_allclose(
            by_name["saturation"], ((brightest - darkest) / np.maximum(brightest, 1)).mean((1, 2)), rtol=1e-4
        )


def test_box_signals_are_of_the_answered_boxes_and_nan_without_any():
    spec = ModelSpec(
        task="detection", labels=("a", "b"), image=ImageInput(height=8, width=8, channels=3), score_threshold=0.5
    )
    boxes = np.array([[[0, 0, 2, 4], [0, 0, 8, 8]], [[0, 0, 1, 1], [0, 0, 0, 0]]], np.float32)
    outputs = {
        "boxes": boxes,
        "scores": np.array([[0.9, 0.4], [0.3, 0.0]], np.float32),
        "classes": np.array([[1, 0], [1, 0]]),
        "embedding": np.zeros((2, 1)),
    }
    by_name = signals.signals(
        {"image": np.zeros((2, 8, 8, 3), np.uint8)}, outputs, spec, None, np.array([[8, 4], [8, 8]])
    )
    assert by_name["boxes"].tolist() == [1, 0]
    assert by_name["mean_box_area"][0] == 8
    assert by_name["aspect"].tolist() == [2, 1]
    assert by_name["predicted_class"][0] == 1
    assert np.isnan([by_name[name][1] for name in ("predicted_class", "mean_score", "mean_box_area")]).all()


@given(arrays(float, st.integers(3, 100), elements=finite))
def test_every_sample_is_in_exactly_one_third(values):
    masks = slices.thirds(values)
    if masks:
        assert (np.sum(list(masks.values()), axis=0) == 1).all()


def test_equal_values_make_no_slices():
    assert slices.thirds(np.ones(30)) == {}


def test_a_restricted_scorer_sees_only_its_slice():
    def score(weights=None):
        w = np.ones(4) if weights is None else weights
        return {"mean": float((w * [0, 0, 1, 1]).sum() / w.sum())}

    assert slices.restrict(score, np.array([False, False, True, True]))(None) == {"mean": 1}
