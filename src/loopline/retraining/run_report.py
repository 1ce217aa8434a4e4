"""The gate of a run: judge the challenger against the champion, and write the evidence as Markdown with pictures.

It runs in the run's worktree, whose test split includes a part of the new data, and writes `reports/retraining/<run>/` in the
repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loopline import settings
from loopline.lib import files
from loopline.release import bundle, current, decisions, promotion, promotion_evidence, registry
from loopline.release.bundle import Bundle
from loopline.release.markdown import figure, plain, table, word
from loopline.release.promotion import PromotionDecision, PromotionEvidence, PromotionPolicy
from loopline.retraining import facts
from loopline.retraining.run_store import Run
from loopline.tasks import bootstrap, slices
from loopline.tasks.bootstrap import Interval

ALL, OLD, NEW = "the whole test split", "old part", "new data's part"
BLUE, GREY = "#0072b2", "#888888"


@dataclass(frozen=True)
class ReportPart:
    """The metric of both bundles on the n samples of a part of the test split, and the paired difference.

    A bound is None if n is too small to tell.
    """

    n: int
    challenger: Interval
    champion: Interval
    gain: Interval


def make(run: Run, repository: Path, journal: Path) -> tuple[Path, PromotionDecision]:
    """Compare the worktree's bundle with the champion by the policy in params.yaml; return the report's path and the decision.

    Without a champion only the floors count. The decision is logged once. journal: its recent traffic gives the weights of the old
    and the new part of the test split. Raises LooplineError if a bundle is missing.
    """
    params, model = settings.model(run.model)
    policy = registry.policy(params, model)
    challenger = bundle.read(Path("models") / run.model / "bundle")
    champion = facts.served_bundle(run.model, run.version, repository) if run.version else None
    path = Path("data") / run.model / "manifest.parquet"
    challenger_evidence, champion_evidence = promotion_evidence.gather(challenger, champion, path)
    present = current.gather(run.model, path, journal) if champion else None
    decision = promotion.decide(challenger_evidence, champion_evidence, policy, present)
    decision = registry.unless_withdrawn(decision, run.model, challenger.version)
    folder = repository / "reports/retraining" / run.id
    folder.mkdir(parents=True, exist_ok=True)
    comparison = []
    if champion_evidence and present:
        masks = {ALL: np.ones(len(present.new), bool), OLD: ~present.new, NEW: present.new}
        parts = {
            name: _part(challenger_evidence, champion_evidence, mask, policy)
            for name, mask in masks.items()
            if mask.any()
        }
        _draw_parts(folder / "parts.png", parts, policy.metric)
        _draw_changes(folder / "changes.png", decision.figures.get("parts", {}))
        comparison = _comparison(decision, parts, policy.metric)
    files.write(folder / "report.md", _text(run, challenger, champion, decision, comparison))
    _log(run, challenger.version, decision)
    return folder / "report.md", decision


def _log(run: Run, challenger: str, decision: PromotionDecision) -> None:
    """Write the decision to the decision log, unless an earlier start of this step did."""
    records, name = decisions.read().records, f"{run.id}/evidence"
    if any((line.evidence.get("retrainer"), line.bundle) == (name, challenger) for line in records):
        return
    champion = decisions.champions(records).get(run.model)
    decisions.append(
        run.model,
        "accept" if decision.promote else "refuse",
        bundle=challenger,
        champion=champion.champion if champion else None,
        reasons=decision.reasons,
        evidence={"retrainer": name, "figures": decision.figures},
    )


def _part(
    challenger: PromotionEvidence, champion: PromotionEvidence, mask: NDArray[np.bool_], policy: PromotionPolicy
) -> ReportPart:
    a, b = (slices.restrict(side.scorer, mask) for side in (challenger, champion))
    sampling = {"resamples": policy.resamples, "seed": policy.seed}
    return ReportPart(
        int(mask.sum()),
        bootstrap.intervals(a, challenger.n, **sampling)[policy.metric],
        bootstrap.intervals(b, challenger.n, **sampling)[policy.metric],
        bootstrap.paired(a, b, challenger.n, metric=policy.metric, **sampling),
    )


def _text(
    run: Run, challenger: Bundle, champion: Bundle | None, decision: PromotionDecision, comparison: list[str]
) -> str:
    bundles = {"challenger": challenger} | ({"champion": champion} if champion else {})
    return "\n\n".join([
        f"# Retraining {run.id}",
        f"The gate **{'accepted' if decision.promote else 'refused'}** the challenger by its demands in `params.yaml`:",
        "\n".join(f"- {plain(reason)}" for reason in decision.reasons),
        table(
            ["", "bundle", "data", "code"],
            [[role, *(f"`{hash_:.12}`" for hash_ in (b.version, b.manifest.lineage.data, b.manifest.lineage.code))]
             for role, b in bundles.items()],
        ),
        *comparison,
        f"The branch `retrain/{run.id}` has the data version and `dvc.lock`: `git merge retrain/{run.id}` keeps them.",
    ]) + "\n"  # fmt: skip


def _comparison(decision: PromotionDecision, parts: Mapping[str, ReportPart], metric: str) -> list[str]:
    """The paragraphs of the report that compare challenger and champion."""
    changes = decision.figures.get("parts", {})
    rows = [
        [
            name,
            str(part.n),
            *(figure(interval.rounded()) for interval in (part.challenger, part.champion)),
            figure(part.gain.rounded(), signed=True),
        ]
        for name, part in parts.items()
    ]
    worst = sorted(changes.items(), key=lambda row: row[1]["value"] if row[1]["value"] is not None else 0.0)
    return [
        f"## {word(metric)}",
        "The 95 % intervals are in brackets. The difference is paired: both bundles answered the same samples.",
        table(["part", "n", "challenger", "champion", "difference"], rows),
        "![challenger and champion by part](parts.png)",
        "## Slices and classes",
        "Each row is challenger minus champion; the worst change comes first.",
        table(["part", "metric", "change"], [[plain(name), row["metric"], figure(row, signed=True)] for name, row in worst]),
        "![change by slice and class](changes.png)",
    ]  # fmt: skip


def _draw_parts(path: Path, parts: Mapping[str, ReportPart], metric: str) -> None:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6, 2.6), layout="constrained")
    axis = drawing.subplots()
    for offset, role, colour in ((-0.1, "challenger", BLUE), (0.1, "champion", GREY)):
        intervals: list[Interval] = [getattr(part, role) for part in parts.values()]
        values = [interval.value for interval in intervals]
        lengths = [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]
        heights = np.arange(len(parts)) + offset
        axis.errorbar(values, heights, xerr=np.maximum(lengths, 0), fmt="o", color=colour, label=role, capsize=3)
    axis.set_yticks(range(len(parts)), [f"{name} ({part.n})" for name, part in parts.items()])
    axis.invert_yaxis()
    axis.set_xlabel(word(metric))
    axis.legend()
    _save(drawing, path)


def _draw_changes(path: Path, changes: Mapping[str, Mapping[str, float | None]]) -> None:
    from matplotlib.figure import Figure

    complete = {name: row for name, row in changes.items() if None not in (row["value"], row["low"], row["high"])}
    drawing = Figure(figsize=(6, 1 + 0.22 * len(complete)), layout="constrained")
    axis = drawing.subplots()
    low, value, high = (np.array([row[side] for row in complete.values()], float) for side in ("low", "value", "high"))
    axis.errorbar(
        value, range(len(complete)), xerr=np.maximum([value - low, high - value], 0), fmt="o", color=BLUE, capsize=3
    )
    axis.axvline(0, color=GREY)
    axis.set_yticks(range(len(complete)), list(complete))
    axis.invert_yaxis()
    axis.set_xlabel("challenger minus champion")
    _save(drawing, path)


def _save(drawing: object, path: Path) -> None:
    with files.replacing(path) as partial:
        drawing.savefig(partial, format="png", dpi=110)  # type: ignore[attr-defined] # matplotlib has no types here
