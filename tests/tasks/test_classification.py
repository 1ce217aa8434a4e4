"""Answers and metrics of a classifier, compared with scikit-learn where it has them."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss, precision_score, recall_score

from loopline.tasks import curves, find
from loopline.tasks.spec import ImageInput, ModelSpec

classification = find("classification")

SPEC = ModelSpec(task="classification", labels=("cat", "dog", "eel"), image=ImageInput(height=8, width=8, channels=1))


@pytest.fixture
def case():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([0.5] * 3, 200)
    targets = np.where(generator.random(200) < 0.6, probabilities.argmax(1), generator.integers(0, 3, 200))
    return {"probabilities": probabilities}, SimpleNamespace(targets=targets, sizes=np.zeros((200, 2), np.int32))


def test_metrics_agree_with_scikit_learn(case):
    outputs, truth = case
    predicted = outputs["probabilities"].argmax(1)
    metrics = classification.scorer(outputs, truth, SPEC)(None)
    assert metrics["accuracy"] == pytest.approx((predicted == truth.targets).mean())
    assert metrics["macro_f1"] == pytest.approx(f1_score(truth.targets, predicted, average="macro"))
    assert metrics["log_loss"] == pytest.approx(log_loss(truth.targets, outputs["probabilities"], labels=[0, 1, 2]))


def test_a_weighted_sample_counts_as_that_many_samples(case):
    outputs, truth = case
    weights = np.random.default_rng(1).integers(0, 4, 200).astype(float)
    repeated = np.repeat(np.arange(200), weights.astype(int))
    long = SimpleNamespace(targets=truth.targets[repeated], sizes=None)
    expected = classification.scorer({"probabilities": outputs["probabilities"][repeated]}, long, SPEC)(None)
    assert classification.scorer(outputs, truth, SPEC)(weights) == pytest.approx(expected)


def test_recall_and_precision_of_each_class_agree_with_scikit_learn(case):
    outputs, truth = case
    predicted = outputs["probabilities"].argmax(1)
    recalls, precisions = (
        recall_score(truth.targets, predicted, average=None),
        precision_score(truth.targets, predicted, average=None),
    )
    for index, score in enumerate(classification.per_class(outputs, truth, SPEC).values()):
        assert score(None) == pytest.approx({"recall": recalls[index], "precision": precisions[index]})


def test_an_overconfident_model_has_a_calibration_error():
    sure = {"probabilities": np.tile([0.98, 0.01, 0.01], (100, 1))}
    truth = SimpleNamespace(targets=np.array([0] * 60 + [1] * 40), sizes=None)
    assert classification.scorer(sure, truth, SPEC)(None)["calibration_error"] == pytest.approx(0.38)


def test_answers_rank_every_class():
    answer = classification.answers({"probabilities": np.array([[0.2, 0.7, 0.1]])}, SPEC, np.zeros((1, 2)))[0]
    assert answer["label"] == "dog"
    assert list(answer["probabilities"]) == ["dog", "cat", "eel"]


def test_a_perfect_ranking_has_precision_one_everywhere():
    ranked = curves.Ranked(np.array([0.9, 0.8, 0.2, 0.1]), np.array([True, True, False, False]), 2)
    recall, precision = curves.precision_recall(ranked)
    assert (precision[recall < 1] == 1).all()
    assert recall[-1] == 1


def test_the_reliability_bins_count_every_answer(case):
    bins = curves.reliability(*classification.confidences(*case, SPEC))
    assert sum(count for *_, count in bins) == 200
    assert all(0 <= accuracy <= 1 for _, accuracy, _ in bins)


def test_a_specification_is_the_same_after_its_json_form():
    assert ModelSpec.from_dict(SPEC.to_dict()) == SPEC
