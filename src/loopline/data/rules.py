"""The rules for a manifest: each rule is one expectation on one of the tables of `data.tables`, with its wording.

An empty cell passes every rule on values; only the rules `complete` and `corners` report empty cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loopline import tasks
from loopline.data.manifest import SPLITS
from loopline.data.tables import required
from loopline.settings import ClassLimits, ImageLimits, ModelSettings, TextLimits
from loopline.tasks.base import Task

BETWEEN = "ColumnValuesToBeBetween"
EQUAL = "ColumnPairValuesToBeEqual"
AMONG = "ColumnValuesToBeInSet"
EMPTY = "ColumnValuesToBeNull"
AGAIN = "The file was changed or damaged after it was written: run `dvc repro -f ingest`."


@dataclass(frozen=True, kw_only=True)
class Rule:
    """kind: a built-in expectation without `Expect`, and its options. remedy: advice for the case that it fails."""

    table: str
    name: str
    sentence: str
    remedy: str
    kind: str = BETWEEN
    options: dict[str, Any]


def rules(settings: ModelSettings, labels: tuple[str, ...]) -> list[Rule]:
    """The rules for a model's task and its `expectations`, in the order in which to show them."""
    task, limits = tasks.find(settings.task), settings.expectations
    return [
        *_columns_and_samples(limits.min_samples, task),
        *_splits(task),
        *(_classes(labels, task) if task.has_classes else []),
        *(_class_sizes(limits, task) if isinstance(limits, ClassLimits) else []),
        _set_aside(limits.max_set_aside, task),
        *(_texts() if task.content == "text" else []),
        *(_text_sizes(limits) if isinstance(limits, TextLimits) else []),
        *(_image_sizes(limits) if isinstance(limits, ImageLimits) else []),
        *(_boxes() if task.truth == "boxes" else []),
    ]


def _columns_and_samples(least: int, task: Task) -> list[Rule]:
    return [
        Rule(
            table="columns",
            name="columns",
            sentence="The manifest has the columns and types of its schema and was made for this task.",
            remedy="Run `dvc repro ingest`. If the task differs, correct it in params.yaml.",
            kind=EQUAL,
            options={"column_A": "found", "column_B": "wanted"},
        ),
        Rule(
            table="samples",
            name="samples",
            sentence=f"There are at least {least:,} samples.",
            remedy="Add data, or lower min_samples.",
            kind="TableRowCountToBeBetween",
            options={"min_value": least},
        ),
        Rule(
            table="samples",
            name="complete",
            sentence=f"Every sample has its {', '.join(required(task))}.",
            remedy=AGAIN,
            kind=EMPTY,
            options={"column": "missing"},
        ),
        Rule(
            table="samples",
            name="content",
            sentence="Every id is the sha256 of its sample's content, so that one content has one id.",
            remedy=AGAIN,
            kind=EQUAL,
            options={"column_A": "id", "column_B": "content", "ignore_row_if": "either_value_is_missing"},
        ),
    ]


def _splits(task: Task) -> list[Rule]:
    return [
        Rule(
            table="samples",
            name="once",
            sentence="No sample occurs twice in one split.",
            remedy="Run `dvc repro -f ingest`, which keeps one copy.",
            kind="CompoundColumnsToBeUnique",
            options={"column_list": ["id", "split"]},
        ),
        Rule(
            table="samples",
            name="leak",
            sentence="No sample is in two splits: a model must not be tested on its training samples.",
            remedy="Run `dvc repro -f ingest`, which keeps one copy.",
            options={"column": "in_splits", "min_value": 1, "max_value": 1},
        ),
        Rule(
            table="samples",
            name="split_names",
            sentence=f"Every sample is in one of the splits {', '.join(SPLITS)}.",
            remedy="Rename the folders or table cells that name the splits.",
            kind=AMONG,
            options={"column": "split", "value_set": list(SPLITS)},
        ),
        Rule(
            table="splits",
            name="split_sizes",
            sentence=f"Every split has at least one {'box' if task.truth == 'boxes' else 'sample'}.",
            remedy="Raise the share of the empty split in params.yaml, or add data.",
            options={"column": "size", "min_value": 1},
        ),
    ]


def _classes(labels: tuple[str, ...], task: Task) -> list[Rule]:
    noun = "box" if task.truth == "boxes" else "sample"
    return [
        Rule(
            table="boxes" if task.truth == "boxes" else "samples",
            name="known_classes",
            sentence=f"Every {noun} has one of the {len(labels)} classes of the manifest's schema.",
            remedy="Correct the label. If the class is new, run `dvc repro ingest`, which adds it.",
            kind=AMONG,
            options={"column": "label", "value_set": list(labels)},
        ),
        Rule(
            table="classes",
            name="used_classes",
            sentence=f"Every class of the manifest's schema has at least one {noun}.",
            remedy="Run `dvc repro ingest`, which drops unused classes.",
            options={"column": "all", "min_value": 1},
        ),
    ]


def _class_sizes(limits: ClassLimits, task: Task) -> list[Rule]:
    nouns = "boxes" if task.truth == "boxes" else "samples"
    return [
        Rule(
            table="classes",
            name="per_class",
            sentence=f"Every class has at least {limits.min_per_class:,} {nouns} in training.",
            remedy="Add samples of the class, drop the class, or lower min_per_class.",
            options={"column": "train", "min_value": limits.min_per_class},
        ),
        Rule(
            table="classes",
            name="balance",
            sentence=f"In training, no class has more than {limits.max_imbalance:g} times the {nouns} of another.",
            remedy="Add samples of the rare class, or raise max_imbalance.",
            options={"column": "imbalance", "max_value": limits.max_imbalance},
        ),
    ]


def _set_aside(most: float, task: Task) -> Rule:
    read = "samples, and of the boxes," if task.truth == "boxes" else "samples"
    return Rule(
        table="ingest",
        name="set_aside",
        sentence=f"Ingest set aside at most {most:.1%} of the {read} that it read, such as unreadable files.",
        remedy="Correct the files under 'Set aside at ingest', or raise max_set_aside.",
        options={"column": "share", "max_value": most},
    )


def _image_sizes(limits: ImageLimits) -> list[Rule]:
    return [
        Rule(
            table="samples",
            name="min_side",
            sentence=f"No image has a side under {limits.min_side:,} pixels.",
            remedy="Remove the image, or lower min_side.",
            options={"column": "short_side", "min_value": limits.min_side},
        ),
        Rule(
            table="samples",
            name="max_side",
            sentence=f"No image has a side over {limits.max_side:,} pixels.",
            remedy="Shrink the image, or raise max_side.",
            options={"column": "long_side", "max_value": limits.max_side},
        ),
    ]


def _boxes() -> list[Rule]:
    correct = "Correct the box in its annotation file."
    return [
        Rule(
            table="boxes",
            name="corners",
            sentence="Every box has a label and four corners that are numbers.",
            remedy=correct,
            kind=EMPTY,
            options={"column": "missing"},
        ),
        Rule(
            table="boxes",
            name="area",
            sentence="Every box has a positive area.",
            remedy=correct,
            options={"column": "side", "min_value": 0, "strict_min": True},
        ),
        Rule(
            table="boxes",
            name="inside",
            sentence="Every box lies inside its image.",
            remedy=correct,
            options={"column": "overhang", "max_value": 0},
        ),
    ]


def _texts() -> list[Rule]:
    return [
        Rule(
            table="samples",
            name="blank",
            sentence="No text is blank.",
            remedy="Fill the row, or remove it.",
            options={"column": "ink", "min_value": 1},
        ),
    ]


def _text_sizes(limits: TextLimits) -> list[Rule]:
    return [
        Rule(
            table="samples",
            name="length",
            sentence=f"No text is longer than {limits.max_characters:,} characters.",
            remedy="Cut the text, or raise max_characters.",
            options={"column": "characters", "max_value": limits.max_characters},
        ),
    ]
