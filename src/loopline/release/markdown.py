"""Names, figures and tables of the model card in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

METRICS = {
    "accuracy": "share of right answers",
    "macro_f1": "F1 score, mean over classes",
    "log_loss": "mean of -log(probability of the truth); lower is better",
    "calibration_error": "mean gap between confidence and accuracy; lower is better",
    "map50": "average precision at 50 % overlap, mean over classes",
    "map50_95": "average precision, mean over classes and over overlaps from 50 to 95 %",
    "precision": "share of the boxes above the score threshold that are right",
    "recall": "share of the objects that boxes above the score threshold find",
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
    """Return a table. Columns of figures are aligned to the right."""
    right = [all(row[i][:1].isdigit() or row[i][:1] in "+-–" for row in rows) for i in range(len(header))]
    rule = ["---:" if number else "---" for number in right]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def figure(row: Mapping[str, Any], *, signed: bool = False) -> str:
    """Return a figure with its interval, `0.9917 [0.9806, 0.9972]`; a dash if it could not be measured."""
    if missing(row.get("value")):
        return "–"
    form = "+.4f" if signed else ".4f"
    if missing(row.get("low")) or missing(row.get("high")):
        return f"{row['value']:{form}}"
    return f"{row['value']:{form}} [{row['low']:{form}}, {row['high']:{form}}]"


def missing(value: Any) -> bool:
    """Return whether a figure could not be measured."""
    return value is None


def short(row: Mapping[str, Any]) -> str:
    """Return a figure without its interval, for a sentence."""
    return "not measured" if missing(row.get("value")) else f"{row['value']:.3f}"


def value(row: Mapping[str, Any]) -> float:
    """Return the value to sort by; figures that could not be measured come last."""
    return 2.0 if missing(row.get("value")) else float(row["value"])


def width(row: Mapping[str, Any]) -> float:
    """Return the width of the interval; infinity if there is none."""
    return float("inf") if missing(row.get("low")) or missing(row.get("high")) else float(row["high"] - row["low"])


def some(names: Sequence[str], most: int) -> str:
    """Return the first `most` names and the number of the others."""
    rest = len(names) - most
    return ", ".join(plain(name) for name in names[:most]) + (f" and {rest} more" if rest > 0 else "")


def plain(text: str) -> str:
    """Return a user's label as plain text in Markdown on one line."""
    for sign in "\\`*_|[]<>#":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())


def code(name: str) -> str:
    """Return the name as code."""
    return f"`{name}`"


def title(name: str) -> str:
    """Return the name of a file as words, without its ending."""
    return name.rsplit(".", 1)[0].replace("_", " ").replace("-", " ")


def word(metric: str) -> str:
    """Return the name of a metric for the start of a sentence."""
    return {"map50": "mAP50"}.get(metric, metric.replace("_", " ").capitalize())
