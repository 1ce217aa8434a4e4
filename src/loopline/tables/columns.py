"""Names of columns and values of cells: find the columns of texts, labels and splits, and turn a cell into text."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from loopline.tables.encoding import decode, problem

# The first name that a table has is used, so the more specific names come first.
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
SEVERAL = "several labels: a text must have one label"
_NEIGHBOURS = re.compile(r"""(['"])\s+\1""")  # two texts without a comma, as NumPy writes a list
_WHOLE = re.compile(r"-?[0-9]+\.0+")  # a whole number as pandas writes it if the column has missing values


class Unreadable(Exception):
    """A cell has no usable value; the message is the reason."""


def match(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column with the first of `names` that a column has, whatever the case; None if no column has any."""
    folded = {normal(column): column for column in reversed(columns)}
    return next((folded[name] for name in map(normal, names) if name in folded), None)


def normal(name: str) -> str:
    """A column's name in the form for comparison: lower case, without quotes and outer spaces."""
    return name.strip().strip('"').strip().lower()


def pick(columns: Sequence[str]) -> tuple[str, str, str | None] | None:
    """The columns of texts, labels and splits (or None) among `columns`; None if there are no texts or no labels."""
    text, label, split = match(columns, TEXT), match(columns, LABEL), match(columns, SPLIT)
    return (text, label, split) if text is not None and label is not None else None


def cell(value: Any, what: str = "text") -> str | None:
    """A cell's value as text: "1" for 1.0 as for 1, "true" and "false" as in JSON, None for NaN.

    what: the column's meaning, for the message. Raises Unreadable if the value's type has no text or the text is not valid.
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
    """The label of a cell. A list of one label is that label, and 1.0 is 1 in any kind of file. Raises Unreadable."""
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
    """The list of texts that a text encodes, as pandas writes it into CSV, or Label Studio as {"choices": [...]}; else the text."""
    for parse in (json.loads, ast.literal_eval) if text.lstrip().startswith(("[", "{")) else ():
        try:
            value = parse(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        texts = value["choices"] if isinstance(value, dict) and value.keys() == {"choices"} else value
        if isinstance(texts, list) and all(isinstance(label, str) for label in texts):
            if parse is ast.literal_eval and _NEIGHBOURS.search(text):
                raise Unreadable(SEVERAL)  # Python has joined neighbours to one text
            return texts
    return text
