"""The report of ingest: counts for `ingest.json` and `classes.csv`, and reasons why training is impossible."""

from __future__ import annotations

from typing import Any

from loopline.data.clean import EXAMPLES, Aside, Cleaned
from loopline.data.formats.common import natural
from loopline.data.manifest import SPLITS, Sample
from loopline.tasks.base import Task


def labels(samples: list[Sample]) -> tuple[str, ...]:
    """The class names in index order: `2` before `10`."""
    names = {name for sample in samples for name in _labels(sample)}
    return tuple(sorted(names, key=natural))


def classes(samples: list[Sample]) -> dict[str, dict[str, int]]:
    """Class -> split -> number of samples (boxes for detection)."""
    counts = {label: dict.fromkeys(SPLITS, 0) for label in labels(samples)}
    for sample in samples:
        for label in _labels(sample):
            counts[label][sample.split] += 1
    return counts


def summary(cleaned: Cleaned, task: Task) -> dict[str, Any]:
    """The content of `ingest.json`, where seen == samples + all that is set aside; the same holds for boxes.

    left_out: files that are not samples, by reason.
    """
    samples = cleaned.samples
    report: dict[str, Any] = {
        "seen": cleaned.seen,
        "samples": len(samples),
        "splits": {split: sum(sample.split == split for sample in samples) for split in SPLITS},
        "sources": {},
        "classes": classes(samples) if task.has_classes else {},
        "set_aside": _reasons(cleaned.aside),
        "left_out": _reasons(cleaned.left_out),
    }
    if cleaned.grouped:
        torn = cleaned.grouped.torn
        report["groups"] = {
            "count": cleaned.grouped.groups,
            "samples_without": cleaned.grouped.without,
            "torn": {"count": len(torn), "examples": torn[:EXAMPLES]},
        }
    for sample in samples:
        report["sources"][sample.source] = report["sources"].get(sample.source, 0) + 1
    if any(sample.boxes is not None for sample in samples):
        kept = sum(len(sample.boxes or ()) for sample in samples)
        report["boxes"] = {
            "seen": cleaned.boxes_seen,
            "kept": kept,
            "clipped": cleaned.boxes_clipped,
            "in_samples_set_aside": cleaned.boxes_seen - kept - cleaned.boxes_aside.total,
            "set_aside": _reasons(cleaned.boxes_aside),
            "images_without": sum(not sample.boxes for sample in samples),
        }
    return report


def obstacles(cleaned: Cleaned, task: Task) -> list[str]:
    """The reasons why no model can be trained on these samples, in sentences; [] if there are none."""
    if not cleaned.samples:
        return ["No sample is left." if cleaned.seen else "There are no samples."]
    if cleaned.grouped and not cleaned.grouped.groups:
        return [f"split.group matches no sample, such as {cleaned.samples[0].path}: correct its path or column."]
    counts = classes(cleaned.samples) if task.has_classes else {}
    present = {sample.split for sample in cleaned.samples}
    problems = [f"Split {split} is empty." for split in SPLITS if split not in present]
    if task.has_classes and len(counts) < 2 and task.truth == "label":
        problems.append(f"There is only one class: {', '.join(counts)}. A classifier needs two.")
    if not counts and task.truth == "boxes":
        problems.append("There is no box in any image.")
    if "train" in present:
        missing = [label for label, count in counts.items() if count["train"] == 0]
        problems += [f"Class {label!r} has no training sample, only {_elsewhere(counts[label])}." for label in missing]
    return problems


def reasons(cleaned: Cleaned) -> list[str]:
    """A line per reason for samples and boxes set aside and files left out, most frequent first, with an example."""
    parts = (("", cleaned.aside), ("box: ", cleaned.boxes_aside), ("file left out: ", cleaned.left_out))
    return [line for kind, aside in parts for line in counted(aside, kind)]


def counted(aside: Aside, kind: str = "") -> list[str]:
    """A line for each reason, most frequent first, with an example. kind: before the reason."""
    return [f"{count:,} x {kind}{reason}, e.g. {aside.examples[reason][0]}" for reason, count in _ordered(aside)]


def _reasons(aside: Aside) -> dict[str, Any]:
    return {reason: {"count": count, "examples": aside.examples[reason]} for reason, count in _ordered(aside)}


def _ordered(aside: Aside) -> list[tuple[str, int]]:
    return sorted(aside.counts.items(), key=lambda item: (-item[1], item[0]))


def _labels(sample: Sample) -> list[str]:
    if sample.boxes is not None:
        return [box.label for box in sample.boxes]
    return [sample.label] if sample.label is not None else []


def _elsewhere(count: dict[str, int]) -> str:
    return " and ".join(f"{number} in {split}" for split, number in count.items() if number)
