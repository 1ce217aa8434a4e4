"""The tokenizer turns any text into token ids."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.tasks import find
from loopline.tasks.spec import ModelSpec, TextInput
from loopline.tasks.text import tokenizing

text = find("text")

TEXTS = ["Don't stop , it's fine !", "Die Straße is leer", "a b a", "stop"]
SPEC = ModelSpec(task="text", labels=("de", "en"), text=TextInput(max_tokens=12, pad_id=tokenizing.PAD))
EDGE, UNKNOWN = tokenizing.EDGE, tokenizing.UNKNOWN


@pytest.fixture(scope="module", params=["words", "characters"])
def ids(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    learnt = tokenizing.learn(TEXTS, request.param, vocabulary=100, max_tokens=12)
    (folder / "tokenizer.json").write_text(learnt.to_str(), encoding="utf-8")
    preprocess = text.preprocessor(SPEC, folder)
    return lambda *texts: preprocess(texts)["ids"]


def test_a_batch_is_padded_to_its_longest_text(ids):
    batch = ids("a b a", "a")
    assert batch.dtype == np.int64
    assert batch.shape == (2, 5 if batch.shape[1] == 5 else 7)
    assert list(batch[1, 3:]) == [tokenizing.PAD] * (batch.shape[1] - 3)
    assert list(batch[1, :3]) == list(ids("a")[0])


def test_a_text_has_the_same_ids_alone_and_in_a_batch(ids):
    together = ids(*TEXTS)
    for row, sample in zip(together, TEXTS, strict=True):
        alone = ids(sample)[0]
        np.testing.assert_array_equal(row[: len(alone)], alone)
        assert (row[len(alone) :] == tokenizing.PAD).all()


def test_an_empty_text_has_only_its_edges(ids):
    assert ids("").tolist() == ids("  \n ").tolist() == [[EDGE, EDGE]]


def test_a_long_text_is_cut(ids):
    assert ids("stop " * 10_000).shape == (1, 12)


@pytest.mark.parametrize("space", ["  ", "\t", "\n", "\r\n", "\u0085", "\u2028", "\u00a0"])
def test_any_white_space_counts_as_one_space(ids, space):
    assert ids(f"a{space}b").tolist() == ids("a b").tolist()


def test_a_token_that_training_did_not_see_is_unknown(ids):
    assert set(ids("😀")[0]) == set(ids("字")[0]) == {EDGE, UNKNOWN}


def test_a_decomposed_letter_equals_the_composed_one(ids):
    assert ids("Strasse e\u0301").tolist() == ids("Strasse \u00e9").tolist()


def test_the_text_pad_in_brackets_does_not_become_padding(ids):
    assert tokenizing.PAD not in ids("[PAD] a [PAD]")


def test_a_lone_surrogate_becomes_a_question_mark(ids):
    assert ids("a \ud800 b").tolist() == ids("a ? b").tolist()


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_texts_make_one_array_between_edges(ids, texts):
    batch = ids(*texts)
    assert batch.shape[0] == len(texts)
    assert 2 <= batch.shape[1] <= 12
    assert (batch[:, 0] == EDGE).all()
    assert ((batch != tokenizing.PAD).sum(1) >= 2).all()


def test_words_are_told_apart_from_punctuation_and_have_no_capitals():
    learnt = tokenizing.learn(TEXTS, "words", vocabulary=100, max_tokens=12)
    assert learnt.encode("DON'T stop!").tokens == ["▁", "don't", "stop", "!", "▁"]


def test_characters_keep_their_capitals():
    learnt = tokenizing.learn(TEXTS, "characters", vocabulary=100, max_tokens=12)
    assert learnt.encode("D d").ids[1] != learnt.encode("D d").ids[3]
    assert learnt.encode("D d").ids[2] == EDGE


def test_a_vocabulary_holds_the_commonest_words(tmp_path: Path):
    learnt = tokenizing.learn(TEXTS, "words", vocabulary=5, max_tokens=12)
    assert sorted(learnt.get_vocab(), key=learnt.get_vocab().__getitem__)[3:] == ["a", "stop"]
