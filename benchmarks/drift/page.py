"""Write docs/drift-benchmark.md from the figures of the trials. The section "Where we lose" follows from the figures too."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.drift.protocol import MANY, OTHER, RATE

from loopline.lib.machine import cpu_name

Figures = dict[str, Any]
LOOPLINE = "Loopline"
HARMLESS, HARMFUL = 0.02, 0.05  # loss of quality
LOSING = 0.05  # difference of two detection rates
QUANTILE = 1.645  # standard errors, for a one-sided test at 5 %


def machine() -> Figures:
    """Return the machine and the versions of the compared libraries."""
    locked = dict(re.findall(r"^([\w-]+)==(\S+)$", (Path(__file__).parent / "requirements.lock").read_text(), re.M))
    versions = {name: locked[name] for name in ("evidently", "river", "scikit-learn", "scipy")}
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions,
    }


def label(trial: Figures) -> str:
    """Return the data set and the model of a trial, for a heading."""
    return f"{trial['dataset']} ({trial['model']})"


def methods(trial: Figures) -> list[str]:
    """Return the names of the methods, Loopline first."""
    return list(trial["seconds"])


def detections(trial: Figures, method: str, keep: Callable[[Figures], bool] = lambda _: True) -> float | None:
    """Return the share of the shifted windows that a method detects; None if there are none. keep: which of them to count.

    A window is detected if its figure is over the one that `RATE` of the method's windows of this size without a shift exceed.
    """
    detected = []
    for n in sorted({row["n"] for row in trial["rows"]}):
        rows = [row for row in trial["rows"] if row["n"] == n]
        threshold = np.quantile([row[method] for row in rows if row["at"] is None], 1 - RATE, method="higher")
        detected += [row[method] > threshold for row in rows if row["at"] and keep(row)]
    return float(np.mean(detected)) if detected else None


def share(value: float | None) -> str:
    """Return a share with two decimals, a dash for None."""
    return "–" if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    """Return a percentage with one decimal, a dash for None."""
    return "–" if value is None else f"{value:.1%}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    head = list(head)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def _mean(values: Iterable[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else None


def _data(trials: list[Figures]) -> str:
    """Return the table of data sets and models, with the quality on each model's own data and on the other domain."""
    rows = []
    for trial in trials:
        foreign = _mean(row["quality"] for row in trial["rows"] if row["at"] == [OTHER, 1, 1.0])
        usual = _mean(row["quality"] for row in trial["rows"] if row["at"] is None)
        model = f"{trial['model']}, {trial['samples']} samples"
        rows.append(
            [trial["dataset"], model, f"{trial['metric']} {share(usual)}", trial["companion"] or "–", share(foreign)]
        )
    return table(["data set", "model, held out", "quality", "other domain", "quality there"], rows)


def _power(trials: list[Figures]) -> str:
    sizes = sorted({row["n"] for trial in trials for row in trial["rows"]})
    parts = []
    for trial in trials:
        rows = [
            [
                method,
                *(share(detections(trial, method, lambda row, n=n: row["n"] == n)) for n in sizes),
                share(detections(trial, method)),
            ]
            for method in methods(trial)
        ]
        parts.append(f"**{label(trial)}**\n\n" + table(["method", *(f"n = {n}" for n in sizes), "all"], rows))
    rows = []
    for method in methods(trials[0]):
        by_size = [_mean(detections(t, method, lambda row, n=n: row["n"] == n) for t in trials) for n in sizes]
        rows.append([method, *map(share, by_size), share(_mean(detections(t, method) for t in trials))])
    return "\n".join(parts) + "\n**Mean of all**\n\n" + table(["method", *(f"n = {n}" for n in sizes), "all"], rows)


def _by_shift(trials: list[Figures]) -> str:
    parts = []
    for trial in trials:
        kinds = list(dict.fromkeys(row["at"][0] for row in trial["rows"] if row["at"]))
        rows = [
            [kind, *(share(detections(trial, method, _of_kind(kind))) for method in methods(trial))] for kind in kinds
        ]
        parts.append(f"**{label(trial)}**\n\n" + table(["shift", *methods(trial)], rows))
    return "\n".join(parts)


def _of_kind(kind: str) -> Callable[[Figures], bool]:
    return lambda row: row["at"][0] == kind


def harm_of(trial: Figures) -> Figures:
    """Return how well harm is estimated: mean errors of the estimates, and shares of windows that are judged wrongly.

    A window is called harmful if its score is over 1 and its estimated loss is over the limit.
    """
    rows = [row for row in trial["rows"] if row["at"]]
    loss = np.array([row["before"] - row["quality"] for row in rows])
    estimated = {way: np.array([row["before"] - row["estimates"][way] for row in rows]) for way in rows[0]["estimates"]}
    estimated["shipped"] = np.array([row["loss"] for row in rows])
    called = np.array([row[LOOPLINE] > 1 and row["harmful"] for row in rows])
    large = np.array([row["n"] for row in rows]) >= 1000
    harmful = large & (loss > HARMFUL)
    return {
        "error": {way: float(np.abs(values - loss).mean()) for way, values in estimated.items()},
        "harmless": float(called[loss < HARMLESS].mean()) if (loss < HARMLESS).any() else None,
        "missed": float((~called)[harmful].mean()) if harmful.any() else None,
        "windows": (int((loss < HARMLESS).sum()), int(harmful.sum())),
    }


def _harm(trials: list[Figures]) -> str:
    rows = []
    for trial in trials:
        harm = harm_of(trial)
        errors = [f"{harm['error'][way] * 100:.1f}" for way in ("confidence", "atc", "shipped")]
        harmless, missed = (
            f"{percent(harm[key])} of {count}"
            for key, count in zip(("harmless", "missed"), harm["windows"], strict=True)
        )
        rows.append([trial["dataset"], trial["metric"], *errors, harmless, missed])
    head = ["data set", "quality", "error of the estimate, points: confidence", "atc", "as shipped"]
    return table([*head, "harmless windows called harmful", "harmful windows of 1,000 missed"], rows)


def limit_of(trial: Figures, *, labelled: bool) -> tuple[float | None, float | None, tuple[int, int]]:
    """Return, of windows of 1,000, the share of harmless ones called harmful, that of harmful ones missed, and the numbers of both.

    A window is harmless or harmful by what its shift costs in the mean of many samples, not by what the shift cost in this window.
    labelled: whether a test that knows the label of every sample decides, by rejecting "no more than `HARMLESS` is lost" at 5 %;
    else Loopline decides.
    """
    rows = [row for row in trial["rows"] if row["at"] and row["n"] >= 1000]
    if labelled:
        called = np.array([row["before"] - row["quality"] - HARMLESS > QUANTILE * row["error"] for row in rows])
    else:
        called = np.array([row[LOOPLINE] > 1 and row["harmful"] for row in rows])
    cost = np.array([row["cost"] for row in rows])
    harmless, harmful = cost < HARMLESS, cost > HARMFUL
    return (
        float(called[harmless].mean()) if harmless.any() else None,
        float((~called)[harmful].mean()) if harmful.any() else None,
        (int(harmless.sum()), int(harmful.sum())),
    )


def _limit(trials: list[Figures]) -> str:
    rows = []
    for trial in trials:
        false, missed, (harmless, harmful) = limit_of(trial, labelled=False)
        labels_false, labels_missed, _ = limit_of(trial, labelled=True)
        rows.append([trial["dataset"], str(harmless), percent(labels_false), percent(false)])
        rows[-1] += [str(harmful), percent(labels_missed), percent(missed)]
    head = ["data set", "harmless windows", "called harmful with all labels", "by Loopline"]
    return table([*head, "harmful windows", "missed with all labels", "by Loopline"], rows)


def losses(trials: list[Figures]) -> list[str]:
    """Return a sentence for each shift of which another method detects clearly more, and for each goal that is missed."""
    sentences = []
    for trial in trials:
        for method in methods(trial)[1:]:
            for kind in dict.fromkeys(row["at"][0] for row in trial["rows"] if row["at"]):
                own, other = (detections(trial, name, _of_kind(kind)) for name in (LOOPLINE, method))
                if own is not None and other is not None and other > own + LOSING:
                    sentences.append(
                        f"{trial['dataset']}, {kind}: {method} detects {other:.2f} of the windows, Loopline {own:.2f}."
                    )
        ratio = trial["realised"] / trial["promise"]
        if not 0.5 <= ratio <= 1.1:
            sentences.append(
                f"{trial['dataset']}: {ratio:.2f} of the promised false alarms come; the goal is 0.5 to 1.1."
            )
        harm = harm_of(trial)
        if harm["error"]["shipped"] > 0.04:
            points = f"{harm['error']['shipped'] * 100:.2f} points"
            sentences.append(
                f"{trial['dataset']}: the estimated quality is {points} off in the mean; the goal is at most 4."
            )
        for verdict, key in (
            ("harmless windows are called harmful", "harmless"),
            ("harmful windows of 1,000 samples are missed", "missed"),
        ):
            if harm[key] is not None and harm[key] > 0.05:
                sentences.append(f"{trial['dataset']}: {harm[key]:.1%} of the {verdict}; the goal is at most 5 %.")
    return sentences


def _rules(cost: Figures | None) -> str:
    if cost is None:
        return 'Not measured in this run: `make bench SUITE=drift ARGS="--report --rules"` does, with `prometheus` on the PATH.\n'
    rows = [
        [name, f"{g['median']:.3f}", f"{g['most']:.3f}", ", ".join(f"`{rule}` {t:.3f}" for t, rule in g["slowest"])]
        for name, g in cost["groups"].items()
    ]
    return (
        f"Prometheus has a day of {cost['series']:,} series, of {cost['models']} models on {cost['replicas']} replicas: "
        f"a sample every {cost['fine']} s in the last {cost['fine_hours']} hours,\n"
        f"and every {cost['coarse']} s before, {cost['samples'] / 1e6:.0f} million in all. "
        "The table gives the seconds of an evaluation, as Prometheus counts them:\n\n"
        + table(["group", "median", "most", "slowest rules"], rows)
    )


def page(results: Figures) -> str:
    """Return the text of docs/drift-benchmark.md."""
    trials, on = results["trials"], results["machine"]
    alarms = [
        [
            t["dataset"],
            f"{t['promise']:.3f}",
            f"{t['realised']:.3f}",
            f"{t['realised'] / t['promise']:.2f} ± {t['realised_error'] / t['promise']:.2f}",
            str(t["streams"]),
        ]
        for t in trials
    ]
    cost = [[method, *(f"{t['seconds'][method] * 1e3:.2f}" for t in trials)] for method in methods(trials[0])]
    versions = ", ".join(f"{name} {number}" for name, number in on["versions"].items())
    lost = "\n".join(f"- {line}" for line in losses(trials)) or "- Nowhere, by more than chance."
    return f"""# How well is drift seen?

This page compares Loopline's drift alarm with other methods. One run of `make bench SUITE=drift` wrote it.
[drift.md](drift.md) explains the alarm.

![Detection rate by the number of samples](pictures/drift-benchmark.png)

{on["cpu"]}, {on["cores"]} cores, Python {on["python"]}; {versions}. The run took {results["minutes"]:.0f} minutes.

## How it is measured

The shift protocol is that of "Failing loudly" (Rabanser et al., NeurIPS 2019). Each shift is applied at three strengths, to 10, 50
and 100 % of a window's samples. Another data set is mixed in at the same shares (other-domain). For models with one class a sample,
classes are knocked out, and one class becomes most of the traffic. Some shifts change nothing, so a method detects them no more
often than it raises false alarms: `plain` removes accents, of which English has none, and `prior` at its second strength makes one
of two classes half of the traffic.

References and windows are drawn independently from the held-out samples, and are the same for all methods. A method's threshold for
a window size is the figure that {RATE:.0%} of its windows without a shift exceed, so all methods have the same rate of false alarms.
Images are written by the same encoder before and after a shift, so that file sizes differ by content alone.

Evidently's preset sees Loopline's signals as columns and counts those that its own tests call drifted. KS is univariate on the softmax
outputs (of a detector: the best score of each class) with Bonferroni, the best simple method of that paper. MMD has a Gaussian
kernel on the embedding. KSWIN watches the top probability.

{_data(trials)}
In the other domain an answer is right if it is the name of the sample's class. No answer is right if the model has no such class.
`digits`, `digit-scenes` and `languages` are the data sets of this repository's models. The other models were trained as
[results.md](results.md) says, in a folder that `--project` names.

## Share of the shifted windows that are detected, at equal false alarms

{_power(trials)}
By shift, over all sizes, strengths and shares:

{_by_shift(trials)}
## False alarms of the shipped threshold

A stream is 24 windows of 200 samples without drift, evaluated 30 times a window. Every five streams have a reference and a threshold
of their own. The ratio is given with its standard error. The thresholds here are simulated with 100 streams for each window size.
Those that ship are simulated with 250, so they are nearer to their aim.

{table(["data set", "promised", "realised", "ratio", "streams"], alarms)}
## Harm

A window is harmless if its quality is less than {HARMLESS * 100:.0f} points under the reference's.
It is harmful if its quality is over {HARMFUL * 100:.0f} points under the reference's.
It is called harmful if its score is over 1 and its estimated loss is over the limit.

{_harm(trials)}
What is the limit of any method? The next table is of windows of 1,000 samples, and of a test that knows the label of each sample.
The test calls a window harmful if it rejects "no more than {HARMLESS * 100:.0f} points are lost" at 5 %. Loopline knows no label.
In this table a window is harmless or harmful by what its shift costs in the mean of {MANY:,} samples; above, by what the shift cost
in that window.

{_limit(trials)}
## Cost of a window, milliseconds

{table(["method", *(t["dataset"] for t in trials)], cost)}
Loopline's cost includes putting the signals into bins. Other programs may have used the machine too, so ratios say more than times.

## Cost of the rules

{_rules(results.get("rules"))}
## Where we lose

{lost}
"""
