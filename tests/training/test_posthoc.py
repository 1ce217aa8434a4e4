"""The temperature and the embedding that are fitted after the weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.training import posthoc


@settings(max_examples=10, deadline=None)
@given(true=st.floats(0.2, 5))
def test_the_temperature_undoes_a_known_scale(true: float) -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, 5, generator=random) * 2
    targets = torch.multinomial(logits.softmax(1), 1, generator=random)[:, 0]
    assert posthoc.temperature(logits * true, targets) == pytest.approx(
        true * posthoc.temperature(logits, targets), rel=1e-3
    )
    assert posthoc.temperature(logits, targets) == pytest.approx(1, abs=0.1)


def test_components_have_unit_variance_and_no_correlation() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(500, 12, generator=random) @ torch.randn(12, 12, generator=random) + 3
    weight, bias = posthoc.principal_components(features, 4)
    embedded = features @ weight.T + bias
    assert weight.shape == (4, 12)
    assert torch.allclose(embedded.T @ embedded / 500, torch.eye(4), atol=1e-3)
    assert torch.allclose(embedded.mean(0), torch.zeros(4), atol=1e-3)


def test_components_beyond_the_rank_of_the_features_are_zero() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(50, 1, generator=random) @ torch.randn(1, 3, generator=random)
    weight, bias = posthoc.principal_components(features, 5)
    embedded = features @ weight.T + bias
    assert embedded.shape == (50, 5)
    assert embedded[:, 0].std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert torch.count_nonzero(embedded[:, 1:]) == 0
