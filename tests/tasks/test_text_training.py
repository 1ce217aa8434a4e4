"""The text model on small data: it learns, it exports, and it accepts any text."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from reviews import ODD, split

from loopline import settings
from loopline.lib import sessions
from loopline.tasks import find
from loopline.tasks.text import ngram_model
from loopline.tasks.text import training as text
from loopline.training import parity, quantization

task = find("text")


def train(folder, kind):
    _, model = settings.model("text", Path(__file__).parents[1] / "params.yaml")
    model = model.model_copy(
        update={"train": model.train.model_copy(update={"epochs": 4, "batch_size": 32, "tokenizer": kind})}
    )
    text.train(
        split(300, 0), split(80, 1), model, seed=0, out=folder / "train", work=folder / "work", log=lambda *_: None
    )
    return model


@pytest.fixture(scope="module", params=["words", "characters"])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = train(folder, request.param)
    return folder, text.export(folder / "train", split(300, 0), split(80, 1), model, out=folder / "model.onnx")


def test_the_model_learns_and_torch_and_onnx_agree(exported):
    folder, spec = exported
    held_out = split(100, 2)
    inputs = task.preprocessor(spec, folder / "train")(held_out.inputs)
    outputs = sessions.run(folder / "model.onnx", inputs)
    assert task.scorer(outputs, held_out, spec)(None)["accuracy"] > 0.95
    parity.check(text.reference(folder / "train")(inputs), outputs, tolerance=1e-4, what="torch and ONNX")


def test_any_text_gets_probabilities_alone_or_in_a_batch(exported):
    folder, spec = exported
    preprocess = task.preprocessor(spec, folder / "train")
    together = sessions.run(folder / "model.onnx", preprocess(ODD))["probabilities"]
    assert np.allclose(together.sum(1), 1, atol=1e-5)
    for row, sample in enumerate(ODD):
        alone = sessions.run(folder / "model.onnx", preprocess([sample]))["probabilities"]
        assert np.allclose(alone[0], together[row], atol=1e-4), repr(sample[:20])


def test_int8_is_small_and_close(exported, tmp_path):
    folder, spec = exported
    source = folder / "model.onnx"
    candidate = quantization.grid("dynamic", ())[0]
    exclude = text.nodes_to_exclude(onnx.load(source))
    quantization.quantize(source, tmp_path / "int8.onnx", candidate, {}, exclude=exclude)
    inputs = task.preprocessor(spec, folder / "train")(split(100, 2).inputs)
    assert quantization.distance(sessions.run(source, inputs), sessions.run(tmp_path / "int8.onnx", inputs)) < 0.02
    assert (tmp_path / "int8.onnx").stat().st_size < source.stat().st_size


def test_two_trainings_write_the_same_bytes(tmp_path):
    sums = []
    for name in ("a", "b"):
        train(tmp_path / name, "words")
        sums.append(hashlib.sha256((tmp_path / name / "train/model.safetensors").read_bytes()).hexdigest())
    assert sums[0] == sums[1]


def test_words_stay_where_characters_are_not_clearly_better():
    same = np.arange(1200) % 4 > 0
    other = same.copy()
    other[:400:4] = True  # 100 more right
    other[1:400:4] = False  # 100 fewer
    assert not ngram_model.clearly_better(other, same)
    other[1:81:4] = True  # now 20 more than fewer, of 1,200
    assert not ngram_model.clearly_better(other, same)
    other[81:161:4] = True  # and now 40
    assert ngram_model.clearly_better(other, same)
    assert not ngram_model.clearly_better(same, same)


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_auto_takes_the_tokens_that_distinguish_the_classes(kind):
    """Either a common word distinguishes the classes, or letters in words that are different in every text."""
    _, model = settings.model("text", Path(__file__).parents[1] / "params.yaml")
    model = model.model_copy(update={"train": model.train.model_copy(update={"tokenizer": "auto"})})

    def words_or_letters(count, seed):
        random = np.random.default_rng(seed)
        targets = np.arange(count) % 2
        words = ["".join(random.choice(list("bcdfgh"), 9)) for _ in targets]
        templates = {"words": ("{} fine", "{} poor"), "characters": ("{}aei", "{}oua")}[kind]
        texts = [templates[target].format(word) for target, word in zip(targets, words, strict=True)]
        return replace(split(count, seed), inputs=texts, targets=targets)

    assert (
        ngram_model.begin(words_or_letters(300, 0), words_or_letters(80, 1), model, model.train).config["tokens"]
        == kind
    )
