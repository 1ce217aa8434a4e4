"""Releases in MLflow's model registry: `loopline release register | promote | rollback | history`.

A registered version is one bundle. Its run holds the complete bundle under `released/<bundle version>`, with the cryptographic
signature beside it if there is one. Its model is the ONNX file with MLflow's signature of types. The aliases `challenger` and
`champion` point to versions: `models:/<name>@champion`.
Reads `models/<name>/bundle/` and `data/<name>/manifest.parquet`; writes the registry and the decision log.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopline import settings, tasks
from loopline.errors import LooplineError
from loopline.release import bundle, current, decisions, promotion, promotion_evidence, signature
from loopline.release.bundle import Bundle, BundleError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
HASH = "bundle_sha256"


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A bundle in the registry: name of the model, version of the bundle, number in the registry, alias."""

    name: str
    version: str
    number: str
    alias: str

    def __str__(self) -> str:
        """Return the text that `loopline release register` prints."""
        return f"{self.name}: bundle {self.version:.12} is version {self.number}, {self.alias}"


def register(folder: Path) -> Registered:
    """Put the bundle at `folder` into the registry as the challenger. Repeated calls register it once.

    A bundle that is already champion stays champion. Raises BundleError on a damaged bundle.
    """
    from loopline.release import tracking

    opened = bundle.read(folder)
    name = opened.manifest.name
    with _registry() as store:
        version = _version(store, name, opened.version) or _create(store, opened)
        if not _committed(version.tags["git_revision"]) and _committed(now := tracking.revision()):
            store.set_model_version_tag(name, version.version, "git_revision", now)  # committed after registration
        with tempfile.TemporaryDirectory() as scratch:  # the bundle may have been signed since, or signed again
            signature.carry(folder, Path(scratch) / opened.version)
            store.log_artifacts(str(version.run_id), scratch, "released")
        champion = _aliased(store, name, CHAMPION)
        is_champion = champion is not None and champion.version == version.version
        if not is_champion:
            store.set_registered_model_alias(name, CHALLENGER, version.version)
    alias = CHAMPION if is_champion else CHALLENGER
    return Registered(name=name, version=opened.version, number=str(version.version), alias=alias)


def promote(
    name: str, *, again: bool = False, dry_run: bool = False, journal: Path | None = None
) -> promotion.PromotionDecision:
    """Make the challenger of `name` champion if the evidence on the test split supports it; log the decision either way.

    again: accept a challenger that was rolled back before, which is otherwise refused. dry_run: decide, but change and log nothing.
    journal: journal by which a challenger that follows an alert is judged on the present traffic. A damaged bundle is refused.
    Raises LooplineError if there is no challenger, or if the champion cannot be fetched for the comparison.
    """
    everything, model = settings.model(name)
    with _registry() as store:
        return _promote(store, name, policy(everything, model), again, dry_run, journal)


def _promote(
    store: MlflowClient, name: str, demands: promotion.PromotionPolicy, again: bool, dry_run: bool, journal: Path | None
) -> promotion.PromotionDecision:
    challenger, champion = _aliased(store, name, CHALLENGER), _aliased(store, name, CHAMPION)
    if challenger is None:
        raise LooplineError(f"{name} has no challenger: register one with `loopline release register {name}`")
    old = champion.tags[HASH] if champion else None
    with tempfile.TemporaryDirectory() as folder:
        champion_bundle = _fetch(store, champion, Path(folder) / CHAMPION) if champion else None
        proof: dict[str, Any] = {"champion": old}
        try:
            challenger_bundle = _fetch(store, challenger, Path(folder) / CHALLENGER)
        except BundleError as error:
            decision = promotion.PromotionDecision(
                promote=False, reasons=(f"the bundle is damaged: {error}",), figures={}
            )
        else:
            path = Path("data") / name / "manifest.parquet"
            measured, baseline = promotion_evidence.gather(challenger_bundle, champion_bundle, path)
            present = current.gather(name, path, journal) if journal and champion_bundle else None
            decision = promotion.decide(measured, baseline, demands, present)
            proof |= {"test_set": measured.test_set, "samples": measured.n, **_sealed(decision.figures)}
    version = challenger.tags[HASH]
    if not again:
        decision = unless_withdrawn(decision, name, version)
    if dry_run:
        return decision
    if not decision.promote:
        decisions.append(name, "refuse", bundle=version, champion=old, reasons=decision.reasons, evidence=proof)
        return decision
    _make_champion(store, challenger, "promote", old=old, reasons=decision.reasons, proof=proof)
    store.delete_registered_model_alias(name, CHALLENGER)
    return decision


def unless_withdrawn(decision: promotion.PromotionDecision, name: str, version: str) -> promotion.PromotionDecision:
    """Return the decision on this version, or its refusal if the version was rolled back before."""
    if (withdrawn := decisions.withdrawn(decisions.read().records, name, version)) is None:
        return decision
    return replace(decision, promote=False, reasons=(f"it was rolled back before: {withdrawn}",))


def rollback(name: str, reason: str = "asked for") -> decisions.DecisionRecord:
    """Make the previous champion in the log champion again, after its bundle was fetched and verified.

    Raises LooplineError if there is no previous champion, or if its bundle is missing or damaged.
    """
    log = decisions.read()
    target = decisions.previous(log.records, name)
    with _registry() as store, tempfile.TemporaryDirectory() as folder:
        champion = _aliased(store, name, CHAMPION)
        if champion is None or target is None:
            raise LooplineError(f"{name} has no earlier champion in {decisions.path()} to roll back to")
        version = _version(store, name, target)
        if version is None:
            raise LooplineError(f"{name}: the earlier champion, bundle {target:.12}, is not in this registry")
        _fetch(store, version, Path(folder) / "bundle")
        old = champion.tags[HASH]
        return _make_champion(store, version, "rollback", old=old, reasons=(reason,), proof={"withdrawn": old})


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A bundle in the registry: its number and tags, its run and that run's tags, and its verified files."""

    number: str
    tags: dict[str, str]
    run: str
    run_tags: dict[str, str]
    bundle: Bundle


class Away(LooplineError):
    """The registry does not answer."""


def fetch(name: str, version: str, into: Path) -> Stored:
    """Fetch the registered bundle `version` into the folder `into` and return it.

    Raises Away if there is no registry that answers; LooplineError if it lacks the bundle or holds another one under this hash.
    """
    with _registry(create=False) as store:
        stored = _version(store, name, version)
        if stored is None:
            raise LooplineError(
                f"{name}: bundle {version:.12} is not in the registry: run `loopline release register {name}`"
            )
        run = store.get_run(str(stored.run_id))
        return Stored(
            number=str(stored.version),
            tags=dict(stored.tags),
            run=str(stored.run_id),
            run_tags=dict(run.data.tags),
            bundle=_fetch(store, stored, into),
        )


def champion(name: str, into: Path) -> Bundle | None:
    """Fetch the champion's bundle into the folder `into` and return it; None if the registry has no champion."""
    with _registry() as store:
        version = _aliased(store, name, CHAMPION)
        return _fetch(store, version, into) if version else None


def follow(name: str, version: str, folder: Path) -> None:
    """Move the alias `champion` to the version that a rollout has promoted or restored; the rollout has logged its decision.

    folder: bundle of this version, which is registered if necessary. Raises LooplineError if the registry refuses.
    """
    opened = bundle.read(folder)
    if opened.version != version:
        raise LooplineError(f"{folder} holds bundle {opened.version:.12}, not {version:.12}")
    with _registry() as store:
        registered = _version(store, name, version) or _create(store, opened)
        store.set_registered_model_alias(name, CHAMPION, registered.version)
        challenger = _aliased(store, name, CHALLENGER)
        if challenger is not None and challenger.version == registered.version:
            store.delete_registered_model_alias(name, CHALLENGER)


def history(names: Sequence[str] = (), at: datetime | None = None) -> decisions.DecisionLog:
    """Return all decisions on these models, or on all if none is named. at: only those that made the champions of that time."""
    log = decisions.read()
    records = log.records if at is None else tuple(decisions.champions(log.records, at=at).values())
    return decisions.DecisionLog(tuple(record for record in records if not names or record.model in names), log.damaged)


def policy(everything: settings.Settings, model: settings.ModelSettings) -> promotion.PromotionPolicy:
    """Return the demands of params.yaml on a challenger of this model."""
    task = tasks.find(model.task)
    return promotion.PromotionPolicy(
        metric=task.headline,
        floors=model.evaluate.floors,
        resamples=model.evaluate.resamples,
        seed=everything.seed,
        **everything.promotion.model_dump(),
    )


@contextmanager
def _registry(*, create: bool = True) -> Iterator[MlflowClient]:
    """Yield a client of the configured registry; its errors become LooplineErrors. create: create a missing SQLite file."""
    from loopline.release import mlflow_store

    uri = mlflow_store.configured_uri()
    file = uri.removeprefix("sqlite:///")
    if file != uri and not create and not Path(file).exists():
        raise Away(f"there is no {file} here: set MLFLOW_TRACKING_URI to the address of the registry")
    try:
        store = mlflow_store.client()
    except mlflow_store.StoreError as error:
        raise Away(f"the model registry cannot be reached: {error}") from error
    try:
        yield store
    except mlflow_store.failures() as error:
        raise LooplineError(f"the model registry refused: {mlflow_store.explain(error, uri)}") from error


def _sealed(figures: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(figures, sort_keys=True, ensure_ascii=False)
    return {"figures": figures, "figures_sha256": hashlib.sha256(text.encode()).hexdigest()}


def _make_champion(
    store: MlflowClient, version: ModelVersion, action: str, *, old: str | None, reasons: Any, proof: dict[str, Any]
) -> decisions.DecisionRecord:
    """Write the log first and then move the alias, so that after a kill in between the next call can carry out the decision."""
    from loopline.release import mlflow_store

    new = version.tags[HASH]
    record = decisions.append(version.name, action, bundle=new, champion=new, reasons=reasons, evidence=proof)
    try:
        store.set_registered_model_alias(version.name, CHAMPION, version.version)
    except Exception as error:
        why = f"the registry could not be changed: {mlflow_store.explain(error, mlflow_store.configured_uri())}"
        decisions.append(version.name, "fail", bundle=new, champion=old, reasons=[why])
        raise LooplineError(f"{version.name}: {why}; the champion is still {old or 'none'}") from error
    return record


def _create(store: MlflowClient, opened: Bundle) -> ModelVersion:
    """Log the bundle and its ONNX model to the training's run, or to a new one, and create a version in the registry."""
    from mlflow.exceptions import MlflowException

    from loopline.release import mlflow_store, tracking
    from loopline.release.mlflow_model import log_onnx_model

    name, lineage = opened.manifest.name, opened.manifest.lineage
    experiment_id = mlflow_store.experiment(store, name)
    run = mlflow_store.find(store, name, tag=HASH, value=opened.version)
    if run is None:  # the bundle came from elsewhere, e.g. a DVC remote
        run = store.create_run(experiment_id, run_name=f"{name}-released", tags={"model": name, HASH: opened.version})
    run_id = run.info.run_id
    model_id = log_onnx_model(run_id, opened.folder)
    store.log_artifacts(run_id, str(opened.folder), _artifact(opened.version))
    try:
        store.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {HASH: opened.version, "data_sha256": lineage.data, "code_sha256": lineage.code}
    tags |= {"parameters_sha256": lineage.parameters, "git_revision": tracking.revision()}
    tags |= {"quantization": opened.manifest.quantization}
    if opened.manifest.unjudged:
        tags["unjudged"] = "true"
    return store.create_model_version(name, f"models:/{model_id}", run_id=run_id, tags=tags, model_id=model_id)


def _committed(revision: str) -> bool:
    return revision != "none" and not revision.endswith("-dirty")


def _artifact(version: str) -> str:
    return f"released/{version}"


def _version(store: MlflowClient, name: str, version: str) -> ModelVersion | None:
    versions = store.search_model_versions(f"name = '{name}' and tags.{HASH} = '{version}'")
    return versions[0] if versions else None


def _aliased(store: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return store.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _fetch(store: MlflowClient, version: ModelVersion, into: Path) -> Bundle:
    """Fetch and return the bundle of a registered version, after checking its sums and the hash that it was registered with."""
    from loopline.release import mlflow_store

    into.mkdir(parents=True)
    expected = version.tags[HASH]
    try:
        folder = Path(store.download_artifacts(str(version.run_id), _artifact(expected), str(into)))
        signed = f"{_artifact(expected)}.sig"
        if any(item.path == signed for item in store.list_artifacts(str(version.run_id), "released")):
            store.download_artifacts(str(version.run_id), signed, str(into))
    except mlflow_store.failures() as error:
        why = mlflow_store.explain(error, mlflow_store.configured_uri())
        raise LooplineError(
            f"{version.name}: bundle {expected:.12} cannot be fetched from the registry: {why}"
        ) from error
    opened = bundle.read(folder)
    if (opened.version, opened.manifest.name) != (expected, version.name):
        raise BundleError(f"{version.name}: the registry holds bundle {opened.version:.12} in place of {expected:.12}")
    return opened
