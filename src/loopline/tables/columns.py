"""Names of columns and values of cells: which column holds the texts, the labels, the splits, and what a cell says."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from loopline.tables.encoding import decode, problem

# The first that a table has counts, so the more telling names come first.
TEXT = (
    "text",
    "sentence",
    "content",
    "review",
    "comment",
    "tweet",
    "message",
    "document",
    "body",
    "utterance",
    "question",
    "headline",
    "description",
    "title",
)
LABEL = (
    "label_text",
    "label_name",
    "label",
    "labels",
    "class",
    "target",
    "category",
    "sentiment",
    "language",
    "lang",
    "intent",
    "topic",
    "emotion",
    "polarity",
    "y",
)
SPLIT = ("split", "subset", "partition", "set")
SEVERAL = "several labels: one label a text is wanted"
_NEIGHBOURS = re.compile(r"""(['"])\s+\1""")  # two texts without a comma, as NumPy writes a list
_WHOLE = re.compile(r"-?[0-9]+\.0+")  # a whole number as pandas writes it where others of its column are missing


class Unreadable(Exception):
    """A cell has no usable value: args are the reason."""


def match(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column that bears the first of `names` that any of them bears, whatever its case; None where none does."""
    folded = {normal(column): column for column in reversed(columns)}
    return next((folded[name] for name in map(normal, names) if name in folded), None)


def normal(name: str) -> str:
    """The name of a column as it is compared."""
    return name.strip().strip('"').strip().lower()


def pick(columns: Sequence[str]) -> tuple[str, str, str | None] | None:
    """The columns of texts, labels and splits (if any) among `columns`; None where there are no texts or labels."""
    text, label, split = match(columns, TEXT), match(columns, LABEL), match(columns, SPLIT)
    return (text, label, split) if text is not None and label is not None else None


def cell(value: Any, what: str = "text") -> str | None:
    """The value of a cell as text: 1.0 and 1 are the same class, true and false are written as in JSON, NaN is nothing.

    what: the column's meaning, for the message. Raises Unreadable where the type is none that has a text.
    """
    if isinstance(value, bytes):
        value = decode(value)
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, float | Decimal):
        if math.isnan(value):
            return None
        value = str(int(value) if math.isfinite(value) and value == int(value) else value)
    elif isinstance(value, int):
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise Unreadable(f"{what} of type {'object' if isinstance(value, dict) else type(value).__name__}")
    if value and (unusable := problem(value)):
        raise Unreadable(f"{what} {unusable}")
    return value


def label_cell(value: Any) -> str | None:
    """The label that a cell holds; a list of one label is that label, and 1.0 is 1 in any kind of file. Raises Unreadable."""
    if isinstance(value, str):
        value = _listed(value)
    if isinstance(value, dict) and value.keys() == {"choices"}:
        value = value["choices"]
    if isinstance(value, list):
        if len(value) > 1:
            raise Unreadable(SEVERAL)
        value = value[0] if value else None
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        value = Decimal(value.strip())
    return cell(value, "label")


def _listed(text: str) -> Any:
    """The list of texts, or the {"choices": [...]}, that a text is: so pandas and Label Studio write it into CSV. Else the text."""
    for parse in (json.loads, ast.literal_eval) if text.lstrip().startswith(("[", "{")) else ():
        try:
            value = parse(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        texts = value["choices"] if isinstance(value, dict) and value.keys() == {"choices"} else value
        if isinstance(texts, list) and all(isinstance(one, str) for one in texts):
            if parse is ast.literal_eval and _NEIGHBOURS.search(text):
                raise Unreadable(SEVERAL)  # Python would join them
            return texts
    return text
