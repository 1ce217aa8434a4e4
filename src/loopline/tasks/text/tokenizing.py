"""The text model's tokenizer, learnt from its training texts: words or characters, as a `tokenizers` file (tokenizer.json).

A text starts and ends with the token EDGE. Where tokens are characters, EDGE also stands for the space. Any run of
Unicode white space counts as one space. A token that the training texts lack is UNKNOWN.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

Kind = Literal["words", "characters"]

PAD, UNKNOWN, EDGE = 0, 1, 2  # the first three ids
_NAMES = ["[PAD]", "[UNK]", "▁"]
WORD = r"\w+(?:'\w+)?|[^\w\s]+"  # "don't" is one word, a run of punctuation is one


def learn(texts: Sequence[str], kind: Kind, *, vocabulary: int, max_tokens: int) -> Tokenizer:
    """Return a tokenizer of the `vocabulary` commonest words (in lower case) or characters of `texts`.

    It cuts a text after `max_tokens` tokens, including the edges, and pads a batch to its longest text.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    edge = _NAMES[EDGE]
    if kind == "words":
        normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        splitter = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    else:  # capitals stay: German has them inside a sentence, Dutch does not
        spaces = [normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), edge)]
        normalizer = normalizers.Sequence([normalizers.NFC(), *spaces])
        splitter = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    counts = Counter[str]()
    for text in texts:
        counts.update(piece for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    common = sorted(counts.keys() - set(_NAMES), key=lambda piece: (-counts[piece], piece))
    ids = {piece: number for number, piece in enumerate([*_NAMES, *common[: vocabulary - len(_NAMES)]])}

    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=_NAMES[UNKNOWN]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{edge} $A {edge}", special_tokens=[(edge, EDGE)])
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding(pad_id=PAD, pad_token=_NAMES[PAD])
    return tokenizer
