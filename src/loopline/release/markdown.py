"""Words, figures and tables of the model card in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

METRICS = {
    "accuracy": "share of right answers",
    "macro_f1": "F1 score, mean over classes",
    "log_loss": "mean of -log(probability of the truth); lower is better",
    "calibration_error": "mean gap between confidence and accuracy; lower is better",
    "map50": "average precision at 50 % overlap, mean over classes",
    "map50_95": "the same, mean over 50 to 95 % overlap",
    "precision": "share of the boxes above the score threshold that are right",
    "recall": "share of the objects that those boxes find",
}
THIRDS = {
    "brightness": {
        "low": "the darkest third",
        "middle": "the middle third by brightness",
        "high": "the brightest third",
    },
    "size": {"low": "the smallest images", "middle": "the middle third by image size", "high": "the largest images"},
    "length": {"low": "the shortest third", "middle": "the middle third by length", "high": "the longest third"},
}


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table; columns of figures stand to the right."""
    right = [all(row[i][:1].isdigit() or row[i][:1] in "+-–" for row in rows) for i in range(len(header))]
    rule = ["---:" if number else "---" for number in right]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def figure(row: Mapping[str, Any], *, signed: bool = False) -> str:
    """`0.9917 [0.9806, 0.9972]`; a figure that could not be measured is a dash."""
    if missing(row.get("value")):
        return "–"
    form = "+.4f" if signed else ".4f"
    if missing(row.get("low")) or missing(row.get("high")):
        return f"{row['value']:{form}}"
    return f"{row['value']:{form}} [{row['low']:{form}}, {row['high']:{form}}]"


def missing(value: Any) -> bool:
    """Whether a figure could not be measured."""
    return value is None


def short(row: Mapping[str, Any]) -> str:
    """A figure for a sentence, without its interval."""
    return "not measured" if missing(row.get("value")) else f"{row['value']:.3f}"


def value(row: Mapping[str, Any]) -> float:
    """What to sort by: what could not be measured comes last."""
    return 2.0 if missing(row.get("value")) else float(row["value"])


def width(row: Mapping[str, Any]) -> float:
    """Of the interval; endless where there is none."""
    return float("inf") if missing(row.get("low")) or missing(row.get("high")) else float(row["high"] - row["low"])


def some(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(plain(name) for name in names[:most]) + (f" and {rest} more" if rest > 0 else "")


def plain(text: str) -> str:
    """A label of the user's as plain text in Markdown, in one line."""
    for sign in "\\`*_|[]<>#":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())


def code(name: str) -> str:
    """As code."""
    return f"`{name}`"


def title(name: str) -> str:
    """A file's name as words."""
    return name.rsplit(".", 1)[0].replace("_", " ").replace("-", " ")


def word(metric: str) -> str:
    """A metric's name at the start of a sentence."""
    return {"map50": "mAP50"}.get(metric, metric.replace("_", " ").capitalize())
