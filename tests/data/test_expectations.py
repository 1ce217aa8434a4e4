"""Each rule has a manifest that breaks only that rule."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopline import settings
from loopline.data import manifest
from loopline.data.expectations import Result, check
from loopline.data.manifest import Box, Sample
from loopline.errors import LooplineError

PARAMS = Path(__file__).parents[1] / "params.yaml"
NAMES = {"classification": "classifier", "detection": "detector", "text": "text"}
LIMITS = {"min_samples": 40, "min_per_class": 5, "max_imbalance": 3, "max_set_aside": 0.1}
SIZES = {"classification": {"min_side": 16, "max_side": 64}, "text": {"max_characters": 30}}
SIZES["detection"] = SIZES["classification"]
INGEST = {"samples": 40, "set_aside": {"unreadable": {"count": 2, "examples": ["broken.png"]}}}
LABELS = ("cat", "dog")
Samples = list[Sample]


def digest(content: bytes | str) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def sample(task: str, number: int, **changes: Any) -> Sample:
    """A sound sample, whose content and id follow from its number unless `changes` replaces them."""
    label = LABELS[number % 2]
    split = ("train", "train", "train", "val", "test")[number // 2 % 5]
    fields: dict[str, Any] = {"source": "zoo", "path": f"{number:02}", "split": split}
    if task == "text":
        fields |= {"text": f"a text about {label} {number}", "label": label}
    else:
        fields |= {"image": f"picture {number}".encode(), "width": 16, "height": 64}
    if task == "classification":
        fields |= {"label": label}
    if task == "detection":
        fields |= {"boxes": (Box(label, 0, 0, 16, 64), Box(label, 1, 2, 3, 4))}
    fields |= changes
    content = fields["text"] if task == "text" else fields["image"]
    return Sample(**{"id": digest(content or ""), **fields})


def sound(task: str) -> Samples:
    return [sample(task, number) for number in range(40)]


def judge(folder: Path, task: str, samples: Samples, **limits: Any) -> Result:
    path = folder / "manifest.parquet"
    manifest.write(path, samples, task=task, labels=limits.pop("labels", LABELS))
    return judge_file(path, task, **limits)


def judge_file(path: Path, task: str, ingest: Any = INGEST, **limits: Any) -> Result:
    model = settings.load(PARAMS).models[NAMES[task]]
    expectations = type(model.expectations).model_validate(LIMITS | SIZES[task] | limits)
    return check(path, ingest, model.model_copy(update={"expectations": expectations}))


def failed(result: Result) -> list[str]:
    return [rule.name for rule in result.failed]


@pytest.mark.parametrize("task", NAMES)
def test_a_sound_manifest_passes_every_rule(tmp_path: Path, task: str) -> None:
    result = judge(tmp_path, task, sound(task))

    assert failed(result) == []
    assert result.samples == 40
    per_sample = 2 if task == "detection" else 1
    assert result.counts["cat"] == {"train": 12 * per_sample, "val": 4 * per_sample, "test": 4 * per_sample}
    assert all(rule.sentence.endswith(".") and rule.remedy and rule.observed for rule in result.checks)


def changed(task: str, number: int, **changes: Any) -> Samples:
    samples = sound(task)
    samples[number] = sample(task, number, **changes)
    return samples


def boxed(*boxes: Box) -> Samples:
    return changed("detection", 0, boxes=boxes)


def relabelled(count: int) -> Samples:
    """All but `count` of the training samples become dogs."""
    samples = sound("classification")
    cats = [n for n, row in enumerate(samples) if row.split == "train" and row.label == "cat"]
    for number in cats[count:]:
        samples[number] = replace(samples[number], label="dog")
    return samples


def moved(task: str, old: str, new: str) -> Samples:
    return [replace(row, split=new) if row.split == old else row for row in sound(task)]


BROKEN: dict[str, tuple[str, Samples, dict[str, Any]]] = {
    "samples": ("classification", sound("classification"), {"min_samples": 41}),
    "complete/source": ("text", changed("text", 3, source=None), {}),
    "complete/label": ("classification", changed("classification", 3, label=None), {}),
    "complete/image": ("detection", changed("detection", 3, image=None), {}),
    "complete/boxes": ("detection", changed("detection", 3, boxes=None), {}),
    "content/image": ("detection", changed("detection", 3, id="0" * 64), {}),
    "content/text": ("text", changed("text", 3, id="0" * 64), {}),
    "once": ("text", [*sound("text"), sample("text", 0, path="copy")], {}),
    "leak": ("classification", [*sound("classification"), sample("classification", 0, split="test")], {}),
    "split_names": ("classification", changed("classification", 0, split="dev"), {}),
    "split_sizes": ("text", moved("text", "val", "test"), {}),
    "known_classes/sample": ("text", changed("text", 0, label="cow"), {}),
    "known_classes/box": ("detection", boxed(Box("cow", 1, 1, 2, 2)), {}),
    "used_classes": ("classification", sound("classification"), {"labels": ("cat", "cow", "dog")}),
    "per_class": ("classification", relabelled(4), {"max_imbalance": 5}),
    "per_class/none": ("classification", relabelled(0), {}),
    "balance": ("classification", relabelled(5), {}),
    "set_aside": ("classification", sound("classification"), {"max_set_aside": 0.04}),
    "min_side": ("detection", changed("detection", 0, height=15, boxes=()), {}),
    "max_side": ("classification", changed("classification", 0, width=65), {}),
    "corners/label": ("detection", boxed(Box(None, 1, 1, 2, 2)), {}),  # type: ignore[arg-type]
    "corners/number": ("detection", boxed(Box("cat", 1, 1, float("nan"), 2)), {}),
    "area/flat": ("detection", boxed(Box("cat", 1, 2, 9, 2)), {}),
    "area/swapped": ("detection", boxed(Box("cat", 9, 1, 2, 2)), {}),
    "inside/right": ("detection", boxed(Box("cat", 1, 1, 16.5, 2)), {}),
    "inside/top": ("detection", boxed(Box("cat", 1, -0.5, 2, 2)), {}),
    "inside/infinite": ("detection", boxed(Box("cat", 1, 1, 2, float("inf"))), {}),
    "blank": ("text", changed("text", 0, text=" \u00a0\t"), {}),
    "length": ("text", changed("text", 0, text="x" * 31), {}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_rule_fails_alone_and_names_its_rows(tmp_path: Path, case: str) -> None:
    task, samples, limits = BROKEN[case]

    result = judge(tmp_path, task, samples, **limits)

    name = case.partition("/")[0]
    assert failed(result) == [name]
    assert result.failed[0].examples or name == "samples"


def test_every_rule_has_a_manifest_that_breaks_it(tmp_path: Path) -> None:
    rules = {rule.name for task in NAMES for rule in judge(tmp_path, task, sound(task)).checks}

    assert rules == {case.partition("/")[0] for case in BROKEN} | {"columns"}


def test_boxes_set_aside_count_too(tmp_path: Path) -> None:
    manifest.write(tmp_path / "m.parquet", sound("detection"), task="detection", labels=LABELS)
    boxes = {"kept": 80, "set_aside": {"no area": {"count": 20}}}

    result = judge_file(tmp_path / "m.parquet", "detection", ingest=INGEST | {"boxes": boxes})

    assert failed(result) == ["set_aside"]
    assert result.failed[0].examples == ("20 of 100 boxes: share 0.2",)


@pytest.mark.parametrize("fault", ["absent", "extra", "type"])
def test_wrong_columns_fail_and_nothing_else_is_checked(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "manifest.parquet"
    manifest.write(path, sound("text"), task="text", labels=LABELS)
    table = manifest.table(path)
    table = {
        "absent": lambda: table.drop_columns(["path"]),
        "extra": lambda: table.append_column("weight", pa.array([1.0] * 40)),
        "type": lambda: table.set_column(
            table.schema.get_field_index("bytes"), "bytes", table["bytes"].cast(pa.int64())
        ),
    }[fault]()
    pq.write_table(table, path)

    result = judge_file(path, "text")

    assert [rule.name for rule in result.checks] == failed(result) == ["columns"]
    assert {"absent": "path", "extra": "weight", "type": "int64"}[fault] in result.failed[0].examples[0]


def test_a_manifest_of_another_task_fails(tmp_path: Path) -> None:
    manifest.write(tmp_path / "m.parquet", sound("text"), task="text", labels=LABELS)

    result = judge_file(tmp_path / "m.parquet", "classification")

    assert result.failed[0].examples == ("(task): found text, wanted classification",)


def test_a_missing_manifest_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(LooplineError, match="dvc repro ingest"):
        judge_file(tmp_path / "none.parquet", "text")


def test_an_empty_manifest_fails_without_a_crash(tmp_path: Path) -> None:
    for task in NAMES:
        assert failed(judge(tmp_path, task, [])) == ["samples", "split_sizes", "used_classes"]


def test_examples_are_few_and_in_the_order_of_the_manifest(tmp_path: Path) -> None:
    samples = [replace(row, height=65) for row in sound("classification")]

    result = judge(tmp_path, "classification", samples)

    by_id = sorted(samples, key=lambda row: row.id)[:5]
    assert result.failed[0].examples == tuple(f"{row.path}: long side 65" for row in by_id)
    assert result.failed[0].observed == "40 of 40 break it"


def test_great_expectations_leaves_its_pages_and_replaces_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    manifest.write(path, sound("text"), task="text", labels=LABELS)
    for _ in range(2):
        check(path, INGEST, settings.load(PARAMS).models["text"], docs=tmp_path / "docs")

    assert (tmp_path / "docs" / "index.html").exists()
    assert len(list((tmp_path / "docs" / "validations").rglob("*-samples.html"))) == 1
