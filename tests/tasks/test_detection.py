"""Average precision, compared with cases by hand and with a plain implementation; and boxes converted back to pixels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from loopline.tasks import average_precision as ap
from loopline.tasks.detection import task as detection
from loopline.tasks.spec import ImageInput, ModelSpec

SPEC = ModelSpec(
    task="detection",
    labels=("cat", "dog"),
    image=ImageInput(height=100, width=100, channels=3, fit="letterbox"),
    score_threshold=0.5,
)


@dataclass(frozen=True)
class Objects:
    targets: list[NDArray[np.float32]]
    sizes: NDArray[np.int32]


def objects(*images: list[tuple[float, ...]]) -> Objects:
    targets = [np.array(image, np.float32).reshape(-1, 5) for image in images]
    return Objects(targets, np.full((len(images), 2), 100, np.int32))


def boxes(*images: list[tuple[float, ...]], most: int = 6) -> dict[str, NDArray[Any]]:
    """Return a graph's outputs from lists of (score, class, x1, y1, x2, y2)."""
    n = len(images)
    outputs: dict[str, NDArray[Any]] = {
        "boxes": np.zeros((n, most, 4), np.float32),
        "scores": np.zeros((n, most), np.float32),
        "classes": np.zeros((n, most), np.int64),
    }
    for number, image in enumerate(images):
        for place, (score, label, *corners) in enumerate(sorted(image, reverse=True)):
            outputs["scores"][number, place], outputs["classes"][number, place] = score, label
            outputs["boxes"][number, place] = corners
    return outputs


A, B, ELSEWHERE = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0), (80.0, 0.0, 90.0, 10.0)


def score(outputs: dict[str, NDArray[Any]], truth: Objects) -> dict[str, float]:
    return detection.TASK.scorer(outputs, truth, SPEC)(None)


def test_a_miss_between_two_hits_costs_a_third_of_the_second_half() -> None:
    metrics = score(boxes([(0.9, 0, *A), (0.8, 0, *ELSEWHERE), (0.7, 0, *B)]), objects([(0, *A), (0, *B)]))
    # Precision 1 up to recall .5 (51 of the 101 points), 2/3 from there on.
    assert metrics["map50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert metrics["map50_95"] == pytest.approx(metrics["map50"])
    assert (metrics["precision"], metrics["recall"]) == (pytest.approx(2 / 3), 1)


def test_a_second_box_on_the_same_object_is_false() -> None:
    metrics = score(boxes([(0.9, 0, *A), (0.8, 0, *A), (0.7, 0, *B)]), objects([(0, *A), (0, *B)]))
    assert metrics["map50"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_box_that_overlaps_by_six_tenths_counts_at_three_of_the_ten_overlaps() -> None:
    metrics = score(boxes([(0.9, 0, 0, 0, 10, 6.05)]), objects([(0, *A)]))
    assert metrics["map50"] == 1
    assert metrics["map50_95"] == pytest.approx(0.3)


def test_the_better_box_takes_the_object_even_if_the_other_fits_more_closely() -> None:
    metrics = score(boxes([(0.9, 0, 0, 0, 10, 8), (0.8, 0, *A)]), objects([(0, *A)]))
    assert metrics["map50"] == 1
    # Above an overlap of .8 the first box is false and the second, at precision 1/2, is right.
    assert metrics["map50_95"] == pytest.approx(0.7 + 0.3 / 2)


def test_a_wrong_class_is_a_miss_and_absent_classes_do_not_count() -> None:
    assert score(boxes([(0.9, 1, *A)]), objects([(0, *A)]))["map50"] == 0
    assert score(boxes([(0.9, 0, *A), (0.1, 1, *B)]), objects([(0, *A)]))["map50"] == 1


def test_average_precision_is_nan_without_objects_and_zero_without_boxes() -> None:
    assert np.isnan(score(boxes([(0.9, 0, *A)]), objects([]))["map50"])
    assert score(boxes([]), objects([(0, *A)])) | {"precision": 0} == {
        "map50": 0,
        "map50_95": 0,
        "precision": 0,
        "recall": 0,
    }


def test_each_class_has_its_own_figures() -> None:
    scorers = detection.TASK.per_class(boxes([(0.9, 0, *A), (0.8, 1, *ELSEWHERE)]), objects([(0, *A), (1, *B)]), SPEC)
    assert scorers["cat"](None) == {"ap50": 1, "ap50_95": 1, "precision": 1, "recall": 1}
    assert scorers["dog"](None) == {"ap50": 0, "ap50_95": 0, "precision": 0, "recall": 0}


def random_case(seed: int, n: int = 5) -> tuple[list[list[tuple[float, ...]]], list[list[tuple[float, ...]]]]:
    random = np.random.default_rng(seed)
    truth: list[list[tuple[float, ...]]] = []
    answered: list[list[tuple[float, ...]]] = []
    for _ in range(n):
        corner = random.uniform(0, 70, (random.integers(0, 4), 2))
        truth.append([(float(random.integers(0, 2)), *c, *(c + 20)) for c in corner])
        guesses = [(o[0], *(np.array(o[1:]) + random.normal(0, 2.5, 4))) for o in truth[-1] for _ in range(2)]
        answered.append([(float(random.uniform(0.01, 1)), *guess) for guess in guesses[:6]])
    return answered, truth


def plain_average_precision(
    answered: list[list[tuple[float, ...]]], truth: list[list[tuple[float, ...]]], label: int, iou: float
) -> float:
    """Compute the average precision by its definition, step by step, for one class and one overlap."""
    answers = sorted(
        (
            (np.float32(b[0]), -i, np.array(b[2:], np.float32))
            for i, image in enumerate(answered)
            for b in image
            if b[1] == label
        ),
        key=lambda answer: answer[:2],
        reverse=True,
    )
    free = {i: [np.array(o[1:], np.float32) for o in image if o[0] == label] for i, image in enumerate(truth)}
    total, hits, curve = sum(map(len, free.values())), 0, []
    for number, (_, image, box) in enumerate(answers, 1):
        shared = [ap.overlap(np.clip(box, 0, 100)[None], other[None])[0, 0] for other in free[-image]]
        if shared and max(shared) >= iou:
            free[-image].pop(int(np.argmax(shared)))
            hits += 1
        curve.append((hits / total if total else 0, hits / number))
    points = [max([p for r, p in curve if r + 1e-12 >= at], default=0.0) for at in np.linspace(0, 1, 101)]
    return float(np.mean(points)) if total else float("nan")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_average_precision_agrees_with_a_plain_implementation(seed: int) -> None:
    given_boxes, truth = random_case(seed)
    matches = detection.match(boxes(*given_boxes), objects(*truth), SPEC)
    for label in range(2):
        expected = [plain_average_precision(given_boxes, truth, label, iou) for iou in ap.IOUS]
        assert ap.average_precision(matches, label)(None) == pytest.approx(expected, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_an_image_of_weight_three_counts_as_three_images(seed: int, counts: list[int]) -> None:
    given_boxes, truth = random_case(seed)
    weighted = detection.TASK.scorer(boxes(*given_boxes), objects(*truth), SPEC)(np.array(counts, np.float64))
    repeated = [
        [part for part, count in zip(side, counts, strict=True) for _ in range(count)] for side in (given_boxes, truth)
    ]
    if not sum(counts):
        return
    assert weighted == pytest.approx(score(boxes(*repeated[0]), objects(*repeated[1])), nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_perfect_answers_score_one_and_no_answer_beats_them(seed: int) -> None:
    given_boxes, truth = random_case(seed)
    perfect = [[(0.9, *part) for part in image] for image in truth]
    if not any(truth):
        return
    assert score(boxes(*perfect), objects(*truth))["map50_95"] == 1
    assert 0 <= score(boxes(*given_boxes), objects(*truth))["map50_95"] <= 1


def test_answers_are_clipped_to_the_original_in_its_pixels_and_above_the_threshold() -> None:
    given_boxes = boxes([(0.9, 1, 10, 20, 30, 120), (0.4, 0, *A)])  # of an input of 100 x 100 from 200 x 100
    (answer,) = detection.TASK.answers(given_boxes, SPEC, np.array([[200, 100]]))
    (box,) = answer["boxes"]
    assert box.pop("score") == pytest.approx(0.9)
    assert box == {"label": "dog", "x1": 20, "y1": 40, "x2": 60, "y2": 100}


def test_a_target_converted_to_the_input_and_back_is_unchanged() -> None:
    target = np.array([[1, 20, 40, 60, 100]], np.float32)
    scaled = detection.to_input(target, 200, 100, SPEC.image)  # type: ignore[arg-type]
    back = detection.to_original(scaled[None, :, 1:], np.array([[200, 100]]), SPEC)
    assert scaled.tolist() == [[1, 10, 20, 30, 50]]
    assert back[0].tolist() == target[:, 1:].tolist()


def test_the_confusion_pairs_by_overlap_so_that_a_wrong_class_shows() -> None:
    given_boxes = boxes([(0.9, 1, *A), (0.8, 0, *ELSEWHERE), (0.2, 0, *B)])
    rows, names = detection.TASK.pairs(given_boxes, objects([(0, *A), (0, *B)]), SPEC)
    assert {(names[a], names[p]) for a, p in rows} == {("cat", "dog"), ("(nothing)", "cat"), ("cat", "(nothing)")}


def test_confidence_and_ranking_tell_hits_from_misses() -> None:
    given_boxes, truth = boxes([(0.9, 0, *A), (0.8, 0, *ELSEWHERE), (0.2, 0, *B)]), objects([(0, *A), (0, *B)])
    confidence, hit = detection.TASK.confidences(given_boxes, truth, SPEC)
    assert confidence.tolist() == pytest.approx([0.9, 0.8])
    assert hit.tolist() == [True, False]
    assert detection.TASK.ranked(given_boxes, truth, SPEC)["cat"].hits.tolist() == [True, False, True]
    assert detection.TASK.ranked(given_boxes, truth, SPEC)["cat"].positives == 2


def test_the_best_threshold_has_the_largest_f1() -> None:
    given_boxes = boxes([(0.9, 0, *A), (0.6, 0, *B), (0.3, 0, *ELSEWHERE)])
    assert detection.best_threshold(given_boxes, objects([(0, *A), (0, *B)]), SPEC) == pytest.approx(0.6)
    assert detection.best_threshold(boxes([]), objects([(0, *A)]), SPEC) == 0.25


def test_images_become_the_graphs_tensor() -> None:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (50, 25), (255, 0, 0)).save(buffer, "PNG")
    tensor = detection.TASK.preprocessor(SPEC, Path())([buffer.getvalue()])["image"]
    assert tensor.shape == (1, 100, 100, 3)
    assert tensor[0, 49, 99].tolist() == [255, 0, 0]
    assert tensor[0, 50, 99].tolist() == [114, 114, 114]
