"""A run's evidence for people: challenger against the served champion, as Markdown with pictures.

Runs in the run's worktree, whose test split has the new data's part too. Writes `reports/retraining/<run>/` in the repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loopline import settings
from loopline.errors import LooplineError
from loopline.lib import files
from loopline.release import bundle, current, decisions, evidence, promotion, registry
from loopline.release.bundle import Bundle
from loopline.release.markdown import figure, plain, table, word
from loopline.release.promotion import PromotionDecision, PromotionEvidence, PromotionPolicy
from loopline.retraining import facts
from loopline.retraining.state import Run
from loopline.tasks import bootstrap, slices
from loopline.tasks.bootstrap import Interval

ALL, OLD, NEW = "the whole test split", "old part", "new data's part"
BLUE, GREY = "#0072b2", "#888888"


@dataclass(frozen=True)
class ReportPart:
    """What both did on a part of the test split of n samples, and the paired difference; None where n is too small to tell."""

    n: int
    challenger: Interval
    champion: Interval
    gain: Interval


def make(run: Run, repository: Path, journal: Path) -> tuple[Path, PromotionDecision]:
    """Weigh the worktree's bundle against the served one by params.yaml's policy, and log the decision once.

    journal: its traffic tells how much each part of the test split counts. Raises LooplineError where a bundle is not here.
    """
    everything, model = settings.model(run.model)
    demands = registry.policy(everything, model)
    challenger = bundle.read(Path("models") / run.model / "bundle")
    champion = facts.served_bundle(run.model, run.version, repository)
    path = Path("data") / run.model / "manifest.parquet"
    ours, theirs = evidence.gather(challenger, champion, path)
    if theirs is None:
        raise LooplineError(f"{run.model}: no champion to compare with")
    now = current.gather(run.model, path, journal)
    decision = promotion.decide(ours, theirs, demands, now)
    masks = {ALL: np.ones(len(now.new), bool), OLD: ~now.new, NEW: now.new}
    parts = {name: _part(ours, theirs, mask, demands) for name, mask in masks.items() if mask.any()}
    folder = repository / "reports/retraining" / run.id
    folder.mkdir(parents=True, exist_ok=True)
    _draw_parts(folder / "parts.png", parts, demands.metric)
    _draw_changes(folder / "changes.png", decision.figures.get("parts", {}))
    files.write(folder / "report.md", _text(run, challenger, champion, decision, parts, demands.metric))
    _log(run, challenger.version, decision)
    return folder / "report.md", decision


def _log(run: Run, challenger: str, decision: PromotionDecision) -> None:
    """A line in the decision log; once, should this step be done again."""
    known, name = decisions.read().records, f"{run.id}/evidence"
    if any((line.evidence.get("retrainer"), line.bundle) == (name, challenger) for line in known):
        return
    champion = decisions.champions(known).get(run.model)
    decisions.append(
        run.model,
        "accept" if decision.promote else "refuse",
        bundle=challenger,
        champion=champion.champion if champion else None,
        reasons=decision.reasons,
        evidence={"retrainer": name, "figures": decision.figures},
    )


def _part(
    ours: PromotionEvidence, theirs: PromotionEvidence, mask: NDArray[np.bool_], demands: PromotionPolicy
) -> ReportPart:
    a, b = (slices.restrict(one.scorer, mask) for one in (ours, theirs))
    given = {"resamples": demands.resamples, "seed": demands.seed}
    return ReportPart(
        int(mask.sum()),
        bootstrap.intervals(a, ours.n, **given)[demands.metric],
        bootstrap.intervals(b, ours.n, **given)[demands.metric],
        bootstrap.paired(a, b, ours.n, metric=demands.metric, **given),
    )


def _text(
    run: Run,
    challenger: Bundle,
    champion: Bundle,
    decision: PromotionDecision,
    parts: Mapping[str, ReportPart],
    metric: str,
) -> str:
    changes = decision.figures.get("parts", {})
    rows = [
        [
            name,
            str(part.n),
            *(figure(one.rounded()) for one in (part.challenger, part.champion)),
            figure(part.gain.rounded(), signed=True),
        ]
        for name, part in parts.items()
    ]
    worst = sorted(changes.items(), key=lambda one: one[1]["value"] if one[1]["value"] is not None else 0.0)
    return "\n\n".join([
        f"# Retraining {run.id}",
        f"The challenger is **{'accepted' if decision.promote else 'refused'}** by the promotion's policy in `params.yaml`:",
        "\n".join(f"- {plain(reason)}" for reason in decision.reasons),
        table(
            ["", "bundle", "data", "code"],
            [[who, *(f"`{one:.12}`" for one in (b.version, b.manifest.lineage.data, b.manifest.lineage.code))]
             for who, b in (("challenger", challenger), ("champion", champion))],
        ),
        f"## {word(metric)}",
        "In brackets the 95 % interval; the difference is paired, both saw the same samples.",
        table(["part", "n", "challenger", "champion", "difference"], rows),
        "![challenger and champion by part](parts.png)",
        "## Slices and classes",
        "The change of each, challenger minus champion, the worst first.",
        table(["part", "metric", "change"], [[plain(name), row["metric"], figure(row, signed=True)] for name, row in worst]),
        "![change by slice and class](changes.png)",
        f"Branch `retrain/{run.id}` holds the data version and `dvc.lock`: `git merge retrain/{run.id}` keeps them.",
    ]) + "\n"  # fmt: skip


def _draw_parts(path: Path, parts: Mapping[str, ReportPart], metric: str) -> None:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6, 2.6), layout="constrained")
    axis = drawn.subplots()
    for offset, who, colour in ((-0.1, "challenger", BLUE), (0.1, "champion", GREY)):
        found: list[Interval] = [getattr(part, who) for part in parts.values()]
        values = [one.value for one in found]
        reach = [[one.value - one.low for one in found], [one.high - one.value for one in found]]
        places = np.arange(len(parts)) + offset
        axis.errorbar(values, places, xerr=np.maximum(reach, 0), fmt="o", color=colour, label=who, capsize=3)
    axis.set_yticks(range(len(parts)), [f"{name} ({part.n})" for name, part in parts.items()])
    axis.invert_yaxis()
    axis.set_xlabel(word(metric))
    axis.legend()
    _save(drawn, path)


def _draw_changes(path: Path, changes: Mapping[str, Mapping[str, float | None]]) -> None:
    from matplotlib.figure import Figure

    known = {name: row for name, row in changes.items() if None not in (row["value"], row["low"], row["high"])}
    drawn = Figure(figsize=(6, 1 + 0.22 * len(known)), layout="constrained")
    axis = drawn.subplots()
    low, value, high = (np.array([row[side] for row in known.values()], float) for side in ("low", "value", "high"))
    axis.errorbar(
        value, range(len(known)), xerr=np.maximum([value - low, high - value], 0), fmt="o", color=BLUE, capsize=3
    )
    axis.axvline(0, color=GREY)
    axis.set_yticks(range(len(known)), list(known))
    axis.invert_yaxis()
    axis.set_xlabel("challenger minus champion")
    _save(drawn, path)


def _save(drawn: object, path: Path) -> None:
    with files.replacing(path) as partial:
        drawn.savefig(partial, format="png", dpi=110)  # type: ignore[attr-defined] # matplotlib has no types here
