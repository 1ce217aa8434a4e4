"""The test report of the model that ships: figures with intervals, by class and by slice, against baselines and floors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.data.manifest import Split
from loopline.lib import sessions
from loopline.lib.arrays import Arrays
from loopline.settings import Evaluate
from loopline.tasks import bootstrap, curves, slices
from loopline.tasks.base import Task
from loopline.tasks.spec import ModelSpec

SLICE_RESAMPLES = 200  # enough for a slice's interval, and there are many slices


def measure(
    task: Task, outputs: Arrays, inputs: Arrays, test: Split, spec: ModelSpec, options: Evaluate, seed: int
) -> dict[str, Any]:
    """Return every figure of the model: `headline`, `n`, `metrics`, `per_class`, `slices`, `calibration_error`."""
    n, fewer = len(test.ids), min(options.resamples, SLICE_RESAMPLES)
    scorer = task.scorer(outputs, test, spec)
    figures = {
        key: value.rounded()
        for key, value in bootstrap.intervals(scorer, n, resamples=options.resamples, seed=seed).items()
    }
    thirds = {
        trait: {third: _slice(task, scorer, mask, fewer, seed) for third, mask in slices.thirds(values).items()}
        for trait, values in slices.traits(inputs, test.inputs, test.sizes).items()
    }
    confidence, hit = task.confidences(outputs, test, spec)
    bins = curves.reliability(confidence, hit)
    total = sum(count for *_, count in bins)
    return {
        "headline": task.headline,
        "n": n,
        "metrics": figures,
        "per_class": {
            label: _class(score, n, slices.samples_of(number, test.targets), fewer, seed)
            for number, (label, score) in enumerate(task.per_class(outputs, test, spec).items())
        },
        "slices": {trait: rows for trait, rows in thirds.items() if rows},
        "calibration_error": round(sum(abs(c - a) * count for c, a, count in bins) / max(total, 1), 4),
    }


def _slice(task: Task, scorer: bootstrap.Scorer, mask: NDArray[np.bool_], resamples: int, seed: int) -> dict[str, Any]:
    """Return a slice's number of samples and its headline figure, None where there are too few to judge."""
    count = int(mask.sum())
    if count < slices.LEAST:
        return {"n": count, "value": None, "low": None, "high": None}
    inside = slices.restrict(scorer, mask)
    intervals = bootstrap.intervals(
        lambda weights: {task.headline: inside(weights)[task.headline]},
        len(mask),
        resamples=resamples,
        seed=seed,
        support=count,
    )
    return {"n": count} | intervals[task.headline].rounded()


def _class(scorer: bootstrap.Scorer, n: int, support: int, resamples: int, seed: int) -> dict[str, Any]:
    intervals = bootstrap.intervals(scorer, n, resamples=resamples, seed=seed, support=support)
    return {name: value.rounded() for name, value in intervals.items()}


def compare(
    task: Task,
    outputs: Arrays,
    simple: tuple[str, Arrays],
    majority: Arrays,
    test: Split,
    spec: ModelSpec,
    options: Evaluate,
    seed: int,
) -> dict[str, Any]:
    """Return the baselines' headline figures, and the model's gain over the simple one with its paired interval."""
    model_scorer, simple_scorer = task.scorer(outputs, test, spec), task.scorer(simple[1], test, spec)
    gain = bootstrap.paired(
        model_scorer, simple_scorer, len(test.ids), metric=task.headline, resamples=options.resamples, seed=seed
    )
    return {
        "majority": round(task.scorer(majority, test, spec)(None)[task.headline], 4),
        "simple": {"name": simple[0], "value": round(simple_scorer(None)[task.headline], 4)},
        "gain_over_simple": gain.rounded(),
    }


def teaching(
    task: Task,
    outputs: Arrays,
    inputs: Arrays,
    untaught: Path,
    test: Split,
    spec: ModelSpec,
    options: Evaluate,
    seed: int,
) -> dict[str, Any]:
    """Return who taught, the headline figure of the same training without a teacher, and the gain with its paired interval.

    untaught: the folder of that training.
    """
    alone = sessions.run(untaught / "model.onnx", inputs)
    with_teacher, without = task.scorer(outputs, test, spec), task.scorer(alone, test, spec)
    gain = bootstrap.paired(
        with_teacher, without, len(test.ids), metric=task.headline, resamples=options.resamples, seed=seed
    )
    teacher = json.loads((untaught / "teacher.json").read_text(encoding="utf-8"))
    figures = {"untaught": round(without(None)[task.headline], 4), "gain_over_untaught": gain.rounded()}
    return {"teacher": teacher, **figures}


def summary(report: dict[str, Any]) -> dict[str, float]:
    """Return flat figures to compare runs by: each metric, the headline's interval, the simple model's value and the gain over it."""
    headline, gain = report["headline"], report["baselines"]["gain_over_simple"]
    figures = {metric: interval["value"] for metric, interval in report["metrics"].items()}
    figures |= {f"{headline}_{end}": report["metrics"][headline][end] for end in ("low", "high")}
    return figures | {"simple": report["baselines"]["simple"]["value"], "gain": gain["value"], "gain_low": gain["low"]}


def objections(report: dict[str, Any], options: Evaluate) -> list[str]:
    """Return the reasons why the model must not ship; empty if it may."""
    headline = report["headline"]
    reasons = []
    for metric, floor in options.floors.items():
        if metric not in report["metrics"]:
            reasons.append(
                f"a floor is set for {metric!r}, which is not measured: there are {', '.join(report['metrics'])}"
            )
        elif not report["metrics"][metric]["value"] >= floor:
            reasons.append(f"{metric} {report['metrics'][metric]['value']} is below the floor of {floor}")
    gain = report["baselines"]["gain_over_simple"]
    beaten = gain["value"] > 0 and (options.must_beat_simple != "proven" or gain["low"] > 0)
    if options.must_beat_simple and not beaten:
        reasons.append(
            f"must_beat_simple is {str(options.must_beat_simple).lower()}, and {headline} is {versus_simple(report)}"
        )
    return reasons


def versus_simple(report: dict[str, Any]) -> str:
    """Say whether the model is better than the simple one, and how sure that is."""
    baselines = report["baselines"]
    gain, simple = baselines["gain_over_simple"], baselines["simple"]
    verdict = "better than" if gain["low"] > 0 else "worse than" if gain["high"] < 0 else "not proven to be better than"
    return (
        f"{verdict} {simple['name']} ({simple['value']}): "
        f"a gain of {gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"
    )
