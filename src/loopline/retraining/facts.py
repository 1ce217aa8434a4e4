"""Gather the guard's evidence on a model from Prometheus, the served bundle and the journal's labels."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loopline.drift import harm, reference, verdict
from loopline.errors import LooplineError
from loopline.observability import prometheus_api, rules
from loopline.release import bundle
from loopline.retraining.guard import RetrainingEvidence

DEPLOYED = Path(".loopline/bundles")  # MODEL/VERSION; a partial copy has the suffix .partial


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the evidence comes from.

    prometheus: its URL. journal: the journal's folder. repository: the folder that holds `models/` and `.loopline/bundles/`.
    window: the length of traffic to judge, as the alert rules write it (`1h`).
    """

    prometheus: str
    journal: Path
    repository: Path
    window: str


def gather(model: str, version: str, since: float, sources: Sources) -> RetrainingEvidence:
    """The evidence on this version of the model. Never raises: an error becomes `unknown`.

    since: only labels that arrived after this time count (seconds since the epoch).
    """
    try:
        return _gather(model, version, since, sources)
    except LooplineError as error:
        return RetrainingEvidence(unknown=str(error))
    except Exception as error:  # an unforeseen state of a journal or bundle: unknown evidence starts nothing
        return RetrainingEvidence(unknown=repr(error))


def _gather(model: str, version: str, since: float, sources: Sources) -> RetrainingEvidence:
    url = sources.prometheus
    mine = {"model": model, "version": version}
    candidate = next(a for group in rules.groups(sources.window) for a in group.alerts if a.name == "RetrainCandidate")
    served = served_bundle(model, version, sources.repository)
    expected = reference.read(served.folder / "drift.json")
    finding = verdict.judge(prometheus_api.window(url, model, version, expected, window=sources.window), expected)
    limit = expected.quality.max_loss
    mix = finding.mix
    return RetrainingEvidence(
        firing=_firing(url, mine),
        drifted=bool(_of(prometheus_api.instant(url, "loopline:drift_score > 1"), mine)),
        harmful=bool(_of(prometheus_api.instant(url, candidate.expr), mine)),
        new_mix=mix is not None and not mix.further and mix.loss <= limit,
        labels=_labels(model, served.manifest.spec.labels, since, sources.journal),
        accuracy=_accuracy(url, mine, expected.quality.value - limit),
    )


def served_bundle(model: str, version: str, repository: Path) -> bundle.Bundle:
    """The bundle whose version starts with `version`, from the deployed bundles or else the one trained last.

    Raises LooplineError if none of them has this version.
    """
    kept = sorted((repository / DEPLOYED / model).glob("*/"))
    named = [folder for folder in kept if folder.name.startswith(version) and folder.suffix != ".partial"]
    for folder in [*named, repository / "models" / model / "bundle"]:
        if version and (folder / bundle.SUMS).exists() and (served := bundle.read(folder)).version.startswith(version):
            return served
    raise LooplineError(f"the bundle of {model} in version {version or 'unknown'} is not here")


def registered_champion(model: str, repository: Path) -> str:
    """Keep the bundle of the registry's champion beside the deployed ones; return its version, or "" if there is no champion."""
    from loopline.release import registry

    kept = repository / DEPLOYED / model
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept, suffix=".partial") as scratch:
        champion = registry.champion(model, Path(scratch) / "champion")
        if champion and not (kept / champion.version).exists():
            champion.folder.rename(kept / champion.version)
    return champion.version if champion else ""


def _of(series: list[prometheus_api.Series], labels: Mapping[str, str]) -> list[prometheus_api.Series]:
    """The series about this model, and about this version if they name one."""
    return [row for row in series if all(row.labels.get(name, value) == value for name, value in labels.items())]


def _firing(url: str, mine: Mapping[str, str]) -> frozenset[str]:
    rows = prometheus_api.instant(url, f'ALERTS{{alertstate="firing",model="{mine["model"]}"}}')
    return frozenset(row.labels.get("alertname", "") for row in _of(rows, mine))


def _labels(model: str, classes: tuple[str, ...], since: float, journal: Path) -> Mapping[str, int]:
    """The number of labels of each class; all 0 if there is no journal."""
    counts = dict.fromkeys(classes, 0)
    if not journal.is_dir():
        return counts
    from loopline.journal.reader import JournalReader

    store = JournalReader(journal)
    try:
        return counts | store.label_counts(model, since=since)
    finally:
        store.index.close()


def _accuracy(url: str, mine: Mapping[str, str], least: float) -> tuple[float, float, float] | None:
    """(lower bound, upper bound, least): bounds on the quality that the rules record from labels, and the least that is no harm."""
    series = ("loopline:quality_labelled", "loopline:labelled_samples")
    rows = [_of(prometheus_api.instant(url, name), mine) for name in series]
    if not all(rows):
        return None
    value, count = (row[0].value for row in rows)
    return (*harm.confidence_sequence(value * count, count), least)
