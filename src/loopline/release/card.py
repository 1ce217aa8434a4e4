"""The model card in Markdown, a pure function of the evidence. Its statements on limits are derived from measured figures.

After Mitchell et al., Model Cards for Model Reporting (FAT* 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopline.release import markdown
from loopline.release.bundle import Manifest
from loopline.tasks import find

MOST_CLASSES = 40  # rows in the table of classes; of more classes it shows the weakest
MOST_NAMED = 5  # names in a sentence
WIDE = 0.2  # width over which an interval counts as imprecise


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """The origin of the samples: the dataset, then labelled batches.

    counts: source -> split -> number of samples. set_aside: reason -> number of samples that were left out.
    """

    name: str
    description: str | None
    licence: str | None
    citation: str | None
    counts: Mapping[str, Mapping[str, int]]
    set_aside: Mapping[str, int]
    adopted: bool = False  # trained elsewhere: see `settings.Adopt`


def card(
    manifest: Manifest,
    source: DataSource,
    report: Mapping[str, Any],
    verdict: Mapping[str, Any],
    pictures: Sequence[str],
) -> str:
    """Return the text of MODEL_CARD.md.

    report: the evaluation's `report.json`. verdict: the quantization's `verdict.json`. pictures: names of files in `pictures/`.
    """
    sections = {
        "Intended use": _use(manifest),
        "Data" if source.adopted else "Training data": _data(source),
        "Quality": _metrics(manifest, source, report),
        "Classes": _classes(report),
        "Slices": _slices(report),
        "Limits": _limits(manifest, report),
        "Number format and size": _quantization(verdict),
        "Interface": _interface(manifest),
        "Pictures": [f"![{markdown.title(name)}](pictures/{name})" for name in pictures],
        "Lineage": _lineage(manifest),
    }
    parts = [f"# {manifest.name}", _summary(manifest, source, report)]
    parts += ["\n\n".join([f"## {title}", *blocks]) for title, blocks in sections.items() if blocks]
    return "\n\n".join(parts) + "\n"


def _summary(manifest: Manifest, source: DataSource, report: Mapping[str, Any]) -> str:
    headline = report["headline"]
    figure = markdown.figure(report["metrics"][headline])
    size = f"{report['model_bytes'] / 1e6:.2f} MB"
    origin = "Trained elsewhere, measured on" if source.adopted else "Trained on"
    unjudged = (
        "**No gate judged this model**: there were too few labelled samples. The figures below may be far off. "
        if manifest.unjudged
        else ""
    )
    return (
        f"{unjudged}{origin} **{source.name}**. "
        f"{markdown.word(headline)} **{figure}** on {report['n']:,} test samples. "
        f"Served as {manifest.quantization.upper()} ONNX, {size}."
    )


def _use(manifest: Manifest) -> list[str]:
    labels = manifest.spec.labels
    use = find(manifest.spec.task).use.format(k=len(labels))
    shape = manifest.spec.image
    inputs = (
        f"Images are scaled to {shape.width} x {shape.height} pixels in {'colour' if shape.channels == 3 else 'greyscale'}."
        if shape
        else f"The model reads the first {manifest.spec.text.max_tokens} tokens of each text."
        if manifest.spec.text
        else ""
    )
    return [
        f"{use} {inputs}",
        *([f"Classes: {markdown.some(labels, MOST_CLASSES)}."] if labels else []),
        "Use the model on inputs like its training data. Do not use it for decisions about people unless a person checks them.",
    ]


def _data(source: DataSource) -> list[str]:
    blocks = [f"**{source.name}**" + (f": {source.description}." if source.description else "")]
    splits = list(dict.fromkeys(split for counts in source.counts.values() for split in counts))
    rows = [[markdown.plain(name), *(f"{n.get(split, 0):,}" for split in splits)] for name, n in source.counts.items()]
    blocks.append(markdown.table(["samples from", *splits], rows))
    if source.licence:
        blocks.append(f"Licence: {source.licence}")
    else:
        blocks.append("Licence: not recorded, because the data is a folder of the user.")
    if source.citation:
        blocks.append(f"Citation: {source.citation}")
    left_out = {reason: n for reason, n in source.set_aside.items() if n}
    if left_out:
        rows = [[reason, f"{n:,}"] for reason, n in sorted(left_out.items(), key=lambda item: (-item[1], item[0]))]
        blocks.append("Set aside before training:\n\n" + markdown.table(["reason", "samples"], rows))
    return blocks


def _metrics(manifest: Manifest, source: DataSource, report: Mapping[str, Any]) -> list[str]:
    header = ["metric", "value", "meaning"]
    rows = [
        [markdown.code(name), markdown.figure(value), markdown.METRICS.get(name, "")]
        for name, value in report["metrics"].items()
    ]
    if not any(meaning for *_, meaning in rows):  # metrics of a task that another package brings
        header, rows = header[:2], [row[:2] for row in rows]
    unused = (
        "of which the training elsewhere may have used some."
        if source.adopted
        else "which neither training nor tuning used."
    )
    blocks = [
        f"Measured on the {report['n']:,} samples of the test split, {unused} "
        "The brackets hold 95 % bootstrap intervals.",
        markdown.table(header, rows),
    ]
    if baselines := report.get("baselines"):
        headline = report["headline"]
        compared = [["this model", markdown.figure(report["metrics"][headline])]]
        compared.append([baselines["simple"]["name"], f"{baselines['simple']['value']:.4f}"])
        constant = "most common" if find(manifest.spec.task).has_classes else "same"
        compared.append([f"always the {constant} answer", f"{baselines['majority']:.4f}"])
        if "untaught" in baselines:
            compared.append(["the same training without a teacher", f"{baselines['untaught']:.4f}"])
        blocks.append(markdown.table([f"{markdown.code(headline)} of", "value"], compared))
        if taught := baselines.get("gain_over_untaught"):
            teacher = baselines["teacher"]
            more = (
                f", which also answered {teacher['unlabelled']:,} unlabelled samples" if "unlabelled" in teacher else ""
            )
            blocks.append(
                f"Gain by the teacher {markdown.code(teacher['model'])} (version {teacher['version'][:12]}){more}, on the same "
                f"samples of the test split: {markdown.figure(taught, signed=True)}."
            )
        if gain := baselines.get("gain_over_simple"):
            proof = (
                "" if (gain["low"] or 0) > 0 else " This does not prove a gain, because the interval is not above zero."
            )
            blocks.append(
                f"Gain over the simple model, on the same samples: {markdown.figure(gain, signed=True)}.{proof}"
            )
    return blocks


def _classes(report: Mapping[str, Any]) -> list[str]:
    classes = report.get("per_class") or {}
    if not classes:
        return []
    names = list(next(iter(classes.values())))
    ranked = list(classes.items())
    note = []
    if len(ranked) > MOST_CLASSES:
        ranked = sorted(ranked, key=lambda item: _low(item[1]))[:MOST_CLASSES]
        note = [f"The {MOST_CLASSES} weakest of {len(classes)} classes."]
    return [
        *note,
        markdown.table(
            ["class", *names],
            [[markdown.plain(label), *(markdown.figure(row[name]) for name in names)] for label, row in ranked],
        ),
    ]


def _slices(report: Mapping[str, Any]) -> list[str]:
    rows = [
        [_third(trait, third), f"{figures['n']:,}", markdown.figure(figures)]
        for trait, thirds in (report.get("slices") or {}).items()
        for third, figures in thirds.items()
    ]
    return [markdown.table(["slice", "samples", markdown.code(report["headline"])], rows)] if rows else []


def _limits(manifest: Manifest, report: Mapping[str, Any]) -> list[str]:
    """Return sentences on weak slices and classes, on those with too few samples, and on the error of the confidence."""
    headline = report["headline"]
    overall = report["metrics"][headline]["value"]
    lines = []
    slices = {
        _third(trait, third): figures
        for trait, thirds in (report.get("slices") or {}).items()
        for third, figures in thirds.items()
    }
    if weak := _weaker(slices, overall):
        lines.append(f"{markdown.word(headline)} is clearly lower than on all samples ({overall:.3f}) for {weak}.")
    elif any(not markdown.missing(figures["value"]) for figures in slices.values()):
        lines.append("No slice is clearly weaker than all samples together.")
    if small := [f"{name} ({figures['n']})" for name, figures in slices.items() if markdown.missing(figures["value"])]:
        lines.append(f"Slices with too few test samples to judge: {', '.join(small)}.")
    classes = {label: next(iter(row.values())) for label, row in (report.get("per_class") or {}).items()}
    if classes:
        metric = next(iter(next(iter(report["per_class"].values()))))
        below = [(label, row) for label, row in classes.items() if markdown.value(row) < overall]
        worst = sorted(below, key=lambda item: markdown.value(item[1]))[:MOST_NAMED]
        if worst:
            named = ", ".join(f"{markdown.plain(label)} ({markdown.short(row)})" for label, row in worst)
            lines.append(f"Weakest classes by {metric}: {named}.")
        wide = [label for label, figure in classes.items() if not markdown.width(figure) <= WIDE]
        if wide:
            lines.append(f"Classes with too few test samples for a precise figure: {markdown.some(wide, MOST_NAMED)}.")
    error = report.get("calibration_error")
    if error is not None:
        lines.append(f"The stated confidence is off by {100 * error:.1f} percentage points on average.")
    lines.append(find(manifest.spec.task).limit)
    lines.append("These figures do not hold for inputs unlike the test split, which servers detect with `drift.json`.")
    return ["\n".join(f"- {line}" for line in lines)]


def _weaker(figures: Mapping[str, Mapping[str, Any]], overall: float) -> str:
    """Name the slices whose interval lies entirely below the figure of all samples, the weakest first."""
    weak = [(name, row) for name, row in figures.items() if row.get("high") is not None and row["high"] < overall]
    return ", ".join(
        f"{name} ({markdown.short(row)})" for name, row in sorted(weak, key=lambda item: item[1]["value"])[:MOST_NAMED]
    )


def _quantization(verdict: Mapping[str, Any]) -> list[str]:
    chosen = verdict["chosen"].upper()
    blocks = [f"**{chosen}** ships: {'; '.join(verdict['reasons'])}."]
    sizes = verdict.get("bytes") or {}
    if sizes:
        rows = [[kind.upper(), f"{size / 1e6:.2f} MB"] for kind, size in sizes.items()]
        blocks.append(markdown.table(["graph", "size"], rows))
    if features := verdict.get("cpu_features"):
        blocks.append(f"The number format was chosen on a processor with {', '.join(features)}.")
    return blocks


def _interface(manifest: Manifest) -> list[str]:
    sides = (("in", manifest.inputs), ("out", manifest.outputs))
    rows = [
        [
            side,
            markdown.code(tensor.name),
            tensor.datatype,
            " x ".join("n" if size == -1 else str(size) for size in tensor.shape),
        ]
        for side, tensors in sides
        for tensor in tensors
    ]
    return [markdown.table(["", "tensor", "datatype", "shape"], rows)]


def _lineage(manifest: Manifest) -> list[str]:
    rows = [
        ["data", f"`{manifest.lineage.data}`", "the manifest"],
        ["parameters", f"`{manifest.lineage.parameters}`", "the model's part of params.yaml and the seed"],
        ["code", f"`{manifest.lineage.code}`", "the code of all stages"],
    ]
    check = "`sha256sum -c SHA256SUMS` checks this bundle. Its version is the sha256 of the sorted lines of that file."
    return [markdown.table(["what", "sha256", "of"], rows), check]


def _low(row: Mapping[str, Any]) -> float:
    return markdown.value(next(iter(row.values())))


def _third(trait: str, third: str) -> str:
    return markdown.THIRDS.get(trait, {}).get(third, f"{trait}, {third} third")
