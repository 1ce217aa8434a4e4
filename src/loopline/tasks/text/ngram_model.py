"""The text model of n-grams: what its training starts from, made from the training texts alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loopline.tasks.spec import TextInput
from loopline.tasks.text import tokenizing
from loopline.tasks.text.start import Start
from loopline.tasks.text.token_ids import encode, texts

if TYPE_CHECKING:
    from loopline.data.manifest import Split
    from loopline.tasks.text.ngrams import NgramNetwork
    from loopline.tasks.text.parameters import TextSettings, TextTrain

NAME = "ngrams"


@dataclass(frozen=True)
class View:
    """Settings of the network for a kind of token.

    longest: most tokens in an n-gram. informed: whether to start from naive Bayes, which helps where texts are few and words
    say much; with overlapping n-grams of characters it costs 2 points. convolve: see `ngrams.NgramNetwork`; with words the
    convolution only memorises the training texts.
    """

    longest: int
    informed: bool
    convolve: bool


VIEWS: dict[tokenizing.Kind, View] = {
    "words": View(longest=2, informed=True, convolve=False),
    "characters": View(longest=5, informed=False, convolve=True),
}


def begin(train: Split, val: Split, settings: TextSettings, options: TextTrain) -> Start:
    """Return an untrained model. Its tokenizer and n-grams come from `train`, the choice of the tokenizer from `val`.

    `auto` takes words, unless characters are clearly better with naive Bayes on `val`: a network on words takes a ninth of
    the time, and without the margin the next batch of labels could reverse the choice.
    """
    from loopline.tasks.text import ngrams

    choice = options.tokenizer
    kinds: list[tokenizing.Kind] = list(VIEWS) if choice == "auto" else [choice]
    candidates = []
    for kind in kinds:
        tokenizer = tokenizing.learn(
            texts(train), kind, vocabulary=options.vocabulary, max_tokens=settings.input.max_tokens
        )
        longest = VIEWS[kind].longest
        dictionary = ngrams.count(encode(tokenizer, train, tokenizing.PAD).batches(), longest, len(train.labels))
        val_batches = encode(tokenizer, val, tokenizing.PAD).batches()
        right = np.concatenate([dictionary.classify(ids, longest) == targets for ids, targets in val_batches])
        candidates.append((right, kind, tokenizer, dictionary))
    place = len(candidates) - 1 if clearly_better(candidates[-1][0], candidates[0][0]) else 0
    _, kind, tokenizer, dictionary = candidates[place]
    config = {
        "architecture": NAME,
        "embedding": settings.export.embedding,
        "tokens": kind,
        "rows": len(dictionary.keys),
    }
    network = build(config, classes=len(train.labels), options=options)
    network.know(dictionary, informed=VIEWS[kind].informed)
    text = TextInput(max_tokens=settings.input.max_tokens, pad_id=tokenizing.PAD, unknown_id=tokenizing.UNKNOWN)
    return Start(tokenizer, network, text, config)


def clearly_better(right: NDArray[np.bool_], than: NDArray[np.bool_]) -> bool:
    """Return whether the gain in accuracy is over two standard errors (McNemar, 1947). right, than: (n,), each one's hits."""
    gain = right.astype(float) - than
    return bool(gain.mean() > 2 * gain.std() / np.sqrt(len(gain)))


def build(config: Mapping[str, Any], *, classes: int, options: TextTrain | None = None) -> NgramNetwork:
    """Return the network that config.json describes, before its n-grams and weights are loaded. options: for training."""
    from loopline.tasks.text.ngrams import NgramNetwork

    view = VIEWS[config["tokens"]]
    return NgramNetwork(
        rows=config["rows"],
        longest=view.longest,
        convolve=view.convolve,
        classes=classes,
        embedding=config["embedding"],
        word_dropout=options.word_dropout if options else 0.0,
    )
