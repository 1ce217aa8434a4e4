"""From a trial's figures to docs/drift-benchmark.md and its picture. The words about where we lose follow from the figures."""

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
OURS = "Loopline"
HARMLESS, HARMFUL = 0.02, 0.05  # loss of quality
LOSING = 0.05  # of a detection rate
SURE = 1.645  # standard errors: one-sided, at 5 %


def machine() -> Figures:
    """What it ran on."""
    locked = dict(re.findall(r"^([\w-]+)==(\S+)$", (Path(__file__).parent / "requirements.lock").read_text(), re.M))
    versions = {name: locked[name] for name in ("evidently", "river", "scikit-learn", "scipy")}
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions,
    }


def label(trial: Figures) -> str:
    """What the model was trained on, and which model it is."""
    return f"{trial['dataset']} ({trial['model']})"


def methods(trial: Figures) -> list[str]:
    """Ours first."""
    return list(trial["seconds"])


def detections(trial: Figures, method: str, keep: Callable[[Figures], bool] = lambda _: True) -> float | None:
    """The share of shifted windows over the method's own threshold: the figure that `RATE` of its windows without a shift pass."""
    found = []
    for n in sorted({row["n"] for row in trial["rows"]}):
        rows = [row for row in trial["rows"] if row["n"] == n]
        threshold = np.quantile([row[method] for row in rows if row["at"] is None], 1 - RATE, method="higher")
        found += [row[method] > threshold for row in rows if row["at"] and keep(row)]
    return float(np.mean(found)) if found else None


def share(value: float | None) -> str:
    """Two decimals; a dash for nothing."""
    return "–" if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    """One decimal; a dash for nothing."""
    return "–" if value is None else f"{value:.1%}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown."""
    head = list(head)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _data(trials: list[Figures]) -> str:
    """What was tried on what."""
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
                m,
                *(share(detections(trial, m, lambda row, n=n: row["n"] == n)) for n in sizes),
                share(detections(trial, m)),
            ]
            for m in methods(trial)
        ]
        parts.append(f"**{label(trial)}**\n\n" + table(["method", *(f"n = {n}" for n in sizes), "all"], rows))
    rows = []
    for m in methods(trials[0]):
        by_size = [_mean(detections(t, m, lambda row, n=n: row["n"] == n) for t in trials) for n in sizes]
        rows.append([m, *map(share, by_size), share(_mean(detections(t, m) for t in trials))])
    return "\n".join(parts) + "\n**Mean of all**\n\n" + table(["method", *(f"n = {n}" for n in sizes), "all"], rows)


def _by_shift(trials: list[Figures]) -> str:
    parts = []
    for trial in trials:
        kinds = list(dict.fromkeys(row["at"][0] for row in trial["rows"] if row["at"]))
        rows = [
            [kind, *(share(detections(trial, m, lambda row, kind=kind: row["at"][0] == kind)) for m in methods(trial))]
            for kind in kinds
        ]
        parts.append(f"**{label(trial)}**\n\n" + table(["shift", *methods(trial)], rows))
    return "\n".join(parts)


def harm_of(trial: Figures) -> Figures:
    """Losses and what was said of them. Harm is called where the score is over 1 and the estimated loss over its limit."""
    rows = [row for row in trial["rows"] if row["at"]]
    loss = np.array([row["before"] - row["quality"] for row in rows])
    said = {way: np.array([row["before"] - row["estimates"][way] for row in rows]) for way in rows[0]["estimates"]}
    said["shipped"] = np.array([row["loss"] for row in rows])
    candidate = np.array([row[OURS] > 1 and row["harmful"] for row in rows])
    large = np.array([row["n"] for row in rows]) >= 1000
    harmful = large & (loss > HARMFUL)
    return {
        "error": {way: float(np.abs(values - loss).mean()) for way, values in said.items()},
        "harmless": float(candidate[loss < HARMLESS].mean()) if (loss < HARMLESS).any() else None,
        "missed": float((~candidate)[harmful].mean()) if harmful.any() else None,
        "windows": (int((loss < HARMLESS).sum()), int(harmful.sum())),
    }


def _harm(trials: list[Figures]) -> str:
    rows = []
    for trial in trials:
        found = harm_of(trial)
        errors = [f"{found['error'][way] * 100:.1f}" for way in ("confidence", "atc", "shipped")]
        harmless, missed = (
            f"{percent(found[key])} of {count}"
            for key, count in zip(("harmless", "missed"), found["windows"], strict=True)
        )
        rows.append([trial["dataset"], trial["metric"], *errors, harmless, missed])
    head = ["data set", "quality", "error of the estimate, points: confidence", "atc", "as shipped"]
    return table([*head, "harmless windows called harmful", "harmful windows of 1,000 missed"], rows)


def limit_of(trial: Figures, *, ours: bool) -> tuple[float | None, float | None, tuple[int, int]]:
    """Of windows of 1,000: the share of harmless ones called harmful, that of harmful ones missed, and how many of both there are.

    Harmless and harmful by what the shift costs in the mean of many samples, not by what it cost in this window. ours: what Loopline
    calls harmful; else what a test with the label of every sample does: it rejects "no more than `HARMLESS` is lost" at 5 %.
    """
    rows = [row for row in trial["rows"] if row["at"] and row["n"] >= 1000]
    if ours:
        called = np.array([row[OURS] > 1 and row["harmful"] for row in rows])
    else:
        called = np.array([row["before"] - row["quality"] - HARMLESS > SURE * row["error"] for row in rows])
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
        false, missed, (harmless, harmful) = limit_of(trial, ours=True)
        labels_false, labels_missed, _ = limit_of(trial, ours=False)
        rows.append([trial["dataset"], str(harmless), percent(labels_false), percent(false)])
        rows[-1] += [str(harmful), percent(labels_missed), percent(missed)]
    head = ["data set", "harmless windows", "called harmful with all labels", "by Loopline"]
    return table([*head, "harmful windows", "missed with all labels", "by Loopline"], rows)


def losses(trials: list[Figures]) -> list[str]:
    """Every shift and size in which another method sees clearly more, and every goal that is missed."""
    found = []
    for trial in trials:
        for method in methods(trial)[1:]:
            for kind in dict.fromkeys(row["at"][0] for row in trial["rows"] if row["at"]):
                ours, theirs = (
                    detections(trial, m, lambda row, kind=kind: row["at"][0] == kind) for m in (OURS, method)
                )
                if ours is not None and theirs is not None and theirs > ours + LOSING:
                    found.append(
                        f"{trial['dataset']}, {kind}: {method} sees {theirs:.2f} of the windows, Loopline {ours:.2f}."
                    )
        ratio = trial["realised"] / trial["promise"]
        if not 0.5 <= ratio <= 1.1:
            found.append(f"{trial['dataset']}: {ratio:.2f} of the promised false alarms come, not 0.5 to 1.1.")
        harm = harm_of(trial)
        if harm["error"]["shipped"] > 0.04:
            found.append(
                f"{trial['dataset']}: the estimated quality is {harm['error']['shipped'] * 100:.2f} points off in the mean, not 4."
            )
        for what, key in (
            ("harmless windows are called harmful", "harmless"),
            ("harmful windows of 1,000 samples are missed", "missed"),
        ):
            if harm[key] is not None and harm[key] > 0.05:
                found.append(f"{trial['dataset']}: {harm[key]:.1%} of the {what}, not 5 %.")
    return found


def _rules(found: Figures | None) -> str:
    if found is None:
        return 'Not measured in this run: `make bench SUITE=drift ARGS="--report --rules"` does, with `prometheus` on the PATH.\n'
    rows = [
        [name, f"{g['median']:.3f}", f"{g['most']:.3f}", ", ".join(f"`{rule}` {t:.3f}" for t, rule in g["slowest"])]
        for name, g in found["groups"].items()
    ]
    return (
        f"{found['models']} models on {found['replicas']} replicas, {found['series']:,} series with a day behind them: "
        f"every {found['fine']} s for {found['fine_hours']} hours,\nevery {found['coarse']} s before, "
        f"{found['samples'] / 1e6:.0f} million samples. Seconds an evaluation, as Prometheus counts them itself:\n\n"
        + table(["group", "median", "most", "slowest rules"], rows)
    )


def page(results: Figures) -> str:
    """docs/drift-benchmark.md."""
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
    cost = [[m, *(f"{t['seconds'][m] * 1e3:.2f}" for t in trials)] for m in methods(trials[0])]
    versions = ", ".join(f"{name} {number}" for name, number in on["versions"].items())
    lost = "\n".join(f"- {line}" for line in losses(trials)) or "- Nowhere, by more than chance."
    return f"""# How well is drift seen?

Loopline's drift alarm beside other methods, in one run of `make bench SUITE=drift`, which wrote this page.
What the alarm is: [drift.md](drift.md).

![Detection rate by the number of samples](pictures/drift-benchmark.png)

{on["cpu"]}, {on["cores"]} cores, Python {on["python"]}; {versions}. The run took {results["minutes"]:.0f} minutes.

## How it is measured

The shift protocol of "Failing loudly" (Rabanser et al., NeurIPS 2019): each shift at three strengths, on 10, 50 and 100 % of a
window's samples; another data set mixed in at the same shares (other-domain); and for models with one class a sample, classes
knocked out and one class made most of the traffic. Some change nothing, and a method can see them no more often than false alarms:
`plain` takes accents, of which English has none, and `prior` at its second strength makes one of two classes half of the traffic.

References and windows are drawn independently from the held-out samples; all methods see the same. A method's threshold for a size of
window is what {RATE:.0%} of its windows without a shift pass, so all have the same rate of false alarms. Images are written by the
same encoder before and after, so that file sizes differ by content alone.

Evidently's preset sees Loopline's signals as columns and counts those that its own tests call drifted. KS is univariate on the softmax
outputs (of a detector: the best score of each class) with Bonferroni, the best simple method of that paper. MMD has a Gaussian
kernel on the embedding. KSWIN watches the top probability.

{_data(trials)}
In the other domain an answer is right if the sample's class has the same name; where no class has, nothing is right.
`digits`, `digit-scenes` and `languages` are the models of this repository. Others were trained as [results.md](results.md) says, in a
folder that `--project` names.

## Shifts that are seen, as a share, at equal false alarms

{_power(trials)}
By shift, over all sizes, strengths and shares:

{_by_shift(trials)}
## False alarms of the shipped threshold

A stream is 24 windows of 200 samples without drift, looked at 30 times a window. Each five have a reference and a threshold of
their own; the ratio is given with its standard error. Here thresholds are simulated with 100 streams for each size of window, those
that ship with 250, which are nearer to their aim.

{table(["data set", "promised", "realised", "ratio", "streams"], alarms)}
## Harm

Harmless: the window's quality is less than {HARMLESS * 100:.0f} points under the reference's; harmful: over {HARMFUL * 100:.0f}.
Called harmful: the score is over 1 and the estimated loss over the limit.

{_harm(trials)}
What is the limit of any method? Take windows of 1,000 samples, and a test that knows the label of each. It calls harmful
where it rejects "no more than {HARMLESS * 100:.0f} points are lost" at 5 %. Loopline, beside it, knows no label. Harmless and
harmful go here by what a shift costs in the mean of {MANY:,} samples; above they go by what it cost in that window.

{_limit(trials)}
## Cost of a window, milliseconds

{table(["method", *(t["dataset"] for t in trials)], cost)}
Loopline's includes putting the signals into bins. Times are of a machine that others may use as well: their ratios say more.

## Cost of the rules

{_rules(results.get("rules"))}
## Where we lose

{lost}
"""
