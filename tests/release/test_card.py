"""The model card states the evidence, in sections that are never empty."""

import re
from dataclasses import replace

import brightness
import pytest

from loopline.release import card

SOURCE = card.DataSource(
    name="digits",
    description="handwritten digits",
    licence="CC-BY-4.0",
    citation="Alpaydin and Kaynak, 1998",
    counts={"digits": {"train": 1200, "val": 200, "test": 360}, "v2": {"train": 10, "val": 2, "test": 3}},
    set_aside={"an exact duplicate": 3, "unreadable": 0},
)
VERDICT = {
    "chosen": "fp32",
    "reasons": ["clearly slower than FP32 on this processor: under 0.67 times its speed"],
    "bytes": {"fp32": 400_000, "int8": 120_000},
    "cpu_features": ["avx2", "avx512_vnni"],
}


def figure(value, spread=0.01):
    return {"value": value, "low": value - spread, "high": value + spread}


@pytest.fixture
def report():
    return {
        "headline": "accuracy",
        "n": 363,
        "metrics": {"accuracy": figure(0.95), "macro_f1": figure(0.94)},
        "per_class": {
            "bright": {"recall": figure(0.97), "precision": figure(0.9)},
            "dark": {"recall": figure(0.6, 0.2), "precision": {"value": None, "low": None, "high": None}},
        },
        "slices": {
            "brightness": {"low": {"n": 121} | figure(0.8), "middle": {"n": 121} | figure(0.95)},
            "width": {"high": {"n": 100} | figure(0.955)},
        },
        "calibration_error": 0.0213,
        "baselines": {
            "majority": 0.5,
            "simple": {"name": "logistic regression on pixels", "value": 0.9},
            "gain_over_simple": figure(0.05),
        },
        "model_bytes": 400_000,
    }


def write(report, *, source=SOURCE, labels=brightness.LABELS, pictures=("confusion.png",)):
    return card.card(brightness.described(labels=labels), source, report, VERDICT, pictures)


def section(text, title):
    return re.search(rf"## {title}\n\n(.*?)(?=\n\n## |\Z)", text, re.DOTALL).group(1)


def test_the_card_starts_with_the_data_and_the_quality(report):
    assert write(report).startswith(
        "# classifier\n\nTrained on **digits**. Accuracy **0.9500 [0.9400, 0.9600]** on 363 test samples. "
        "Served as FP32 ONNX, 0.40 MB."
    )


def test_the_card_names_the_sources_of_the_data_and_the_samples_left_out(report):
    data = section(write(report), "Training data")
    assert "| v2 | 10 | 2 | 3 |" in data
    assert "Licence: CC-BY-4.0" in data
    assert "Citation: Alpaydin and Kaynak, 1998" in data
    assert "| an exact duplicate | 3 |" in data
    assert "unreadable" not in data


def test_a_missing_licence_is_stated(report):
    source = replace(SOURCE, licence=None, citation=None, description=None, set_aside={})
    data = section(write(report, source=source), "Training data")
    assert "Licence: not recorded" in data
    assert "Citation" not in data
    assert "Set aside" not in data


def test_every_metric_has_its_interval_and_is_compared_with_the_baselines(report):
    good = section(write(report), "Quality")
    assert "| `macro_f1` | 0.9400 [0.9300, 0.9500] | F1 score, mean over classes |" in good
    assert "| logistic regression on pixels | 0.9000 |" in good
    assert "Gain over the simple model, on the same samples: +0.0500 [+0.0400, +0.0600]." in good


def test_the_limits_name_clearly_weaker_slices_and_classes(report):
    limits = section(write(report), "Limits")
    assert "Accuracy is clearly lower than on all samples (0.950) for the darkest third (0.800)." in limits
    assert "Weakest classes by recall: dark (0.600)." in limits
    assert "Classes with too few test samples for a precise figure: dark." in limits
    assert "off by 2.1 percentage points on average" in limits


def test_the_limits_change_with_the_evidence(report):
    report["slices"]["brightness"]["low"] |= figure(0.945)
    assert "No slice is clearly weaker than all samples together." in section(write(report), "Limits")


def test_an_unmeasured_figure_is_a_dash(report):
    assert "| dark | 0.6000 [0.4000, 0.8000] | – |" in section(write(report), "Classes")


def test_the_quantization_verdict_has_its_reason(report):
    numbers = section(write(report), "Number format and size")
    assert "**FP32** ships: clearly slower than FP32 on this processor: under 0.67 times its speed." in numbers
    assert "| INT8 | 0.12 MB |" in numbers


def test_a_slice_too_small_to_judge_is_named_with_its_samples(report):
    report["slices"] = {"size": {"high": {"n": 3, "value": None, "low": None, "high": None}}}
    assert "| the largest images | 3 | – |" in section(write(report), "Slices")
    limits = section(write(report), "Limits")
    assert "Slices with too few test samples to judge: the largest images (3)." in limits
    assert "No slice is clearly weaker" not in limits


def test_no_section_is_empty(report):
    report |= {"slices": {}, "per_class": {}}
    text = write(report, pictures=())
    assert "## Slices" not in text
    assert "## Classes" not in text
    assert "## Pictures" not in text
    assert not re.search(r"## [^\n]*\n\n(## |\Z)", text)


def test_only_the_weakest_of_many_classes_are_shown(report):
    labels = tuple(f"c{i:03}" for i in range(100))
    report["per_class"] = {label: {"recall": figure(0.5 + i / 1000)} for i, label in enumerate(labels)}
    classes = section(write(report, labels=labels), "Classes")
    assert classes.startswith("The 40 weakest of 100 classes.")
    assert "c039" in classes
    assert "c040" not in classes


def test_a_label_cannot_break_the_table(report):
    report["per_class"] = {"a|b\n`c` <script>": {"recall": figure(0.9)}}
    assert "| a\\|b \\`c\\` \\<script\\> | 0.9000" in section(write(report), "Classes")


def test_the_card_has_pictures_and_lineage(report):
    text = write(report, pictures=["precision_recall.png"])
    assert "![precision recall](pictures/precision_recall.png)" in text
    assert f"`{'a' * 64}`" in section(text, "Lineage")


def test_the_interface_lists_inputs_and_outputs_of_the_graph(report):
    interface = section(write(report), "Interface")
    assert "| in | `image` | UINT8 | n x 8 x 8 x 1 |" in interface
    assert "| out | `probabilities` | FP32 | n x 2 |" in interface


def test_the_same_evidence_gives_the_same_card(report):
    assert write(report) == write(report)
