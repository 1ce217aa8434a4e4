"""Drift signals, bins and slices."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from loopline.tasks import signals, slices
from loopline.tasks.spec import ModelSpec, TextInput

finite = st.floats(-1e6, 1e6)


@given(arrays(float, st.integers(1, 200), elements=finite), st.integers(2, 12))
def test_every_value_falls_in_one_bin(values, bins):
    edges = signals.bin_edges(values, bins)
    assert len(edges) <= bins - 1
    assert signals.bin_counts(values, edges).sum() == len(values)


def test_bins_of_distinct_values_have_equal_mass():
    values = np.random.default_rng(0).normal(size=1000)
    counts = signals.bin_counts(values, signals.bin_edges(values, 10))
    assert set(counts[:-1]) <= {99, 100, 101}


def test_what_is_no_number_has_a_bin_of_its_own():
    assert signals.bin_counts(np.array([0.0, np.nan, 2.0]), np.array([1.0])).tolist() == [1, 1, 1]


def test_text_signals_tell_a_long_sure_text_from_a_short_unsure_one():
    spec = ModelSpec(task="text", labels=("a", "b"), text=TextInput(max_tokens=8))
    outputs = {"probabilities": np.array([[0.99, 0.01], [0.5, 0.5]]), "embedding": np.zeros((2, 1))}
    found = signals.signals({"ids": np.zeros((2, 3), np.int64)}, ["a long text", "é"], outputs, spec)
    assert found["length"].tolist() == [11, 1]
    assert found["bytes"].tolist() == [11, 2]
    assert found["entropy"][0] < found["entropy"][1]
    assert found["margin"][1] == 0


@given(arrays(float, st.integers(3, 100), elements=finite))
def test_thirds_share_the_samples_out(values):
    masks = slices.thirds(values)
    if masks:
        assert (np.sum(list(masks.values()), axis=0) == 1).all()


def test_equal_values_make_no_slices():
    assert slices.thirds(np.ones(30)) == {}


def test_a_restricted_scorer_sees_its_slice_alone():
    def score(weights=None):
        w = np.ones(4) if weights is None else weights
        return {"mean": float((w * [0, 0, 1, 1]).sum() / w.sum())}

    assert slices.restrict(score, np.array([False, False, True, True]))(None) == {"mean": 1}
