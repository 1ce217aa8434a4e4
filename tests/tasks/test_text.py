"""From any text to token ids."""

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
    found = ids("a b a", "a")
    assert found.dtype == np.int64
    assert found.shape == (2, 5 if found.shape[1] == 5 else 7)
    assert list(found[1, 3:]) == [tokenizing.PAD] * (found.shape[1] - 3)
    assert list(found[1, :3]) == list(ids("a")[0])


def test_a_text_reads_the_same_alone_and_among_others(ids):
    together = ids(*TEXTS)
    for row, one in zip(together, TEXTS, strict=True):
        alone = ids(one)[0]
        np.testing.assert_array_equal(row[: len(alone)], alone)
        assert (row[len(alone) :] == tokenizing.PAD).all()


def test_an_empty_text_has_its_edges(ids):
    assert ids("").tolist() == ids("  \n ").tolist() == [[EDGE, EDGE]]


def test_a_long_text_is_cut(ids):
    assert ids("stop " * 10_000).shape == (1, 12)


@pytest.mark.parametrize("space", ["  ", "\t", "\n", "\r\n", "\u0085", "\u2028", "\u00a0"])
def test_any_white_space_is_one_space(ids, space):
    assert ids(f"a{space}b").tolist() == ids("a b").tolist()


def test_what_training_did_not_see_is_unknown(ids):
    assert set(ids("😀")[0]) == set(ids("字")[0]) == {EDGE, UNKNOWN}


def test_a_decomposed_letter_is_the_composed_one(ids):
    assert ids("Strasse e\u0301").tolist() == ids("Strasse \u00e9").tolist()


def test_a_text_cannot_name_the_padding(ids):
    assert tokenizing.PAD not in ids("[PAD] a [PAD]")


def test_a_lone_surrogate_is_a_question_mark(ids):
    assert ids("a \ud800 b").tolist() == ids("a ? b").tolist()


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_texts_make_one_array_between_edges(ids, texts):
    found = ids(*texts)
    assert found.shape[0] == len(texts)
    assert 2 <= found.shape[1] <= 12
    assert (found[:, 0] == EDGE).all()
    assert ((found != tokenizing.PAD).sum(1) >= 2).all()


def test_words_are_told_apart_from_punctuation_and_have_no_capitals():
    learnt = tokenizing.learn(TEXTS, "words", vocabulary=100, max_tokens=12)
    assert learnt.encode("DON'T stop!").tokens == ["▁", "don't", "stop", "!", "▁"]


def test_characters_keep_their_capitals():
    learnt = tokenizing.learn(TEXTS, "characters", vocabulary=100, max_tokens=12)
    assert learnt.encode("D d").ids[1] != learnt.encode("D d").ids[3]
    assert learnt.encode("D d").ids[2] == EDGE


def test_a_vocabulary_holds_the_commonest(tmp_path: Path):
    learnt = tokenizing.learn(TEXTS, "words", vocabulary=5, max_tokens=12)
    assert sorted(learnt.get_vocab(), key=learnt.get_vocab().__getitem__)[3:] == ["a", "stop"]
