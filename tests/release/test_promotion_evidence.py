"""The evidence for promotion: both models on the same samples, each with its own preprocessing and label order."""

import brightness
import numpy as np
import pytest
from brightness import write_manifest

from loopline.data import manifest
from loopline.errors import LooplineError
from loopline.lib import sessions
from loopline.release import promotion_evidence
from loopline.tasks.slices import restrict


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "manifest.parquet"
    write_manifest(path)
    return path


def test_both_models_are_measured_on_the_same_samples_in_total_by_slice_and_by_class(make, path):
    challenger, champion = make("challenger", 130.5), make("champion", 160)
    a, b = promotion_evidence.gather(challenger, champion, path)
    assert (a.version, b.version) == (challenger.version, champion.version)
    assert a.test_set == b.test_set
    assert a.n == b.n == 256
    assert a.scorer(None)["accuracy"] == pytest.approx(1 - 3 / 256)
    assert b.scorer(None)["accuracy"] == pytest.approx(1 - 32 / 256, abs=0.003)
    assert sorted(a.parts) == [
        "brightness high",
        "brightness low",
        "brightness middle",
        "class bright",
        "class dark",
    ]
    scorer, metric = b.parts["brightness middle"]
    assert scorer(None)[metric] == pytest.approx(1 - 32 / 85, abs=0.02)
    assert min(a.seconds, b.seconds) > 0


def test_a_class_with_three_samples_is_counted_but_not_judged(make, tmp_path):
    path, labels = tmp_path / "three.parquet", ("bright", "dark", "grey")
    write_manifest(path, labels=labels, labelled=lambda v: "grey" if 126 < v < 130 else "bright" if v > 127 else "dark")
    a, b = promotion_evidence.gather(make("new", 127.5, labels=labels), make("old", 140, labels=labels), path)
    assert a.small == b.small == {"class grey": 3}
    assert "class grey" not in {*a.parts, *b.parts}
    assert "class bright" in a.parts


def test_without_a_champion_there_is_only_the_challengers_evidence(make, path):
    assert promotion_evidence.gather(make("bundle", 130.5), None, path)[1] is None


def test_the_order_of_the_labels_does_not_matter(make, path, tmp_path):
    swapped = tmp_path / "swapped.parquet"
    write_manifest(swapped, labels=("dark", "bright"))
    bundle = make("bundle", 130.5)
    figures = [promotion_evidence.gather(bundle, None, at)[0].scorer(None) for at in (path, swapped)]
    assert figures[0] == pytest.approx(figures[1])


def test_a_new_label_is_wrong_for_a_champion_that_does_not_know_it(make, tmp_path):
    path = tmp_path / "three.parquet"

    def labelled(value):
        return "grey" if 100 < value < 156 else "bright" if value > 127 else "dark"

    write_manifest(path, labels=("bright", "dark", "grey"), labelled=labelled)
    new = make("new", 127.5, labels=("bright", "dark", "grey"))
    a, b = promotion_evidence.gather(new, make("old", 127.5), path)
    scorer, metric = b.parts["labels the champion knows"]
    assert scorer(None)[metric] == 1.0
    assert b.scorer(None)["accuracy"] == pytest.approx(1 - 55 / 256)
    assert "labels the champion knows" in a.parts


def test_a_bundle_for_another_task_is_refused(make, tmp_path):
    path = tmp_path / "text.parquet"
    sample = manifest.Sample(id="0", source="s", path="p", split="test", label="bright", text="t")
    manifest.write(path, [sample], task="text", labels=brightness.LABELS)
    with pytest.raises(LooplineError, match=r"is for text, but bundle .* is for classification"):
        promotion_evidence.gather(make("bundle", 130.5), None, path)


def test_an_empty_test_split_is_refused(make, tmp_path):
    path = tmp_path / "train.parquet"
    write_manifest(path, split="train")
    with pytest.raises(LooplineError, match="has no test sample"):
        promotion_evidence.gather(make("bundle", 130.5), None, path)


def test_the_hash_of_the_test_set_changes_with_the_labels(path, tmp_path):
    before = promotion_evidence.test_set_hash(manifest.load_split(path, "test"))
    assert before == promotion_evidence.test_set_hash(manifest.load_split(path, "test"))
    other = tmp_path / "other.parquet"
    write_manifest(other, labelled=lambda value: "bright" if value > 128 else "dark")
    assert promotion_evidence.test_set_hash(manifest.load_split(other, "test")) != before


def test_boxes_keep_their_class_by_name():
    outputs = {"classes": np.array([[0, 1, 1]]), "scores": np.ones((1, 3))}
    aligned = promotion_evidence.align(outputs, ("cat", "dog"), ("bird", "dog", "cat"))
    assert aligned["classes"].tolist() == [[2, 1, 1]]
    assert aligned["scores"] is outputs["scores"]


def test_batches_give_the_same_outputs_as_one_call(tmp_path):
    path = brightness.onnx_model(tmp_path / "m.onnx", 127.5)
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1)).astype(np.uint8)
    at_once, batched = (sessions.run(path, {"image": images}, batch) for batch in (64, 3))
    assert at_once["probabilities"].shape == (10, 2)
    for name in at_once:
        np.testing.assert_allclose(at_once[name], batched[name], rtol=1e-5)


def test_a_file_that_is_not_a_model_is_named(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(LooplineError, match=r"m\.onnx cannot be opened as an ONNX model"):
        sessions.session(tmp_path / "m.onnx")


def test_models_with_different_inputs_can_be_timed_side_by_side(tmp_path):
    path = brightness.onnx_model(tmp_path / "m.onnx", 127.5)
    single, many = (np.zeros((n, 8, 8, 1), np.uint8) for n in (1, 20_000))
    seconds = sessions.side_by_side(path, path, {"image": single}, {"image": many}, rounds=3, least_seconds=0.001)
    assert seconds["b"] > 5 * seconds["a"]


def test_a_slice_scores_only_its_own_samples(make, path):
    measured, _ = promotion_evidence.gather(make("bundle", 160), None, path)
    mask = np.arange(256) < 100  # the manifest is in order of the ids, which are the brightness
    assert restrict(measured.scorer, mask)(None)["accuracy"] == 1.0
