"""Releases in MLflow's model registry: `loopline release register | promote | rollback | history`.

A registered version is one bundle: its run holds the whole of it under `released/<bundle version>`, its signature beside it where
it was signed; its model is the ONNX file with its signature of types. The aliases `challenger` and `champion` say which is which:
`models:/<name>@champion`.
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
from loopline.release import bundle, current, decisions, evidence, promotion, signature
from loopline.release.bundle import Bundle, BundleError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
HASH = "bundle_sha256"


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A bundle in the registry: model name, bundle version, the registry's number, the alias that it has."""

    name: str
    version: str
    number: str
    alias: str

    def __str__(self) -> str:
        """As `loopline release register` prints it."""
        return f"{self.name}: bundle {self.version:.12} is version {self.number}, {self.alias}"


def register(folder: Path) -> Registered:
    """Put the bundle at `folder` into the registry as the challenger; once, however often it is called.

    A bundle that is champion already stays what it is. Raises BundleError on a damaged bundle.
    """
    from loopline.release import tracking

    found = bundle.read(folder)
    name = found.manifest.name
    with _registry() as store:
        version = _version(store, name, found.version) or _create(store, found)
        if not _committed(version.tags["git_revision"]) and _committed(now := tracking.revision()):
            store.set_model_version_tag(name, version.version, "git_revision", now)  # its files are in a commit since
        with tempfile.TemporaryDirectory() as aside:  # it may be signed by now, or anew
            signature.carry(folder, Path(aside) / found.version)
            store.log_artifacts(str(version.run_id), aside, "released")
        champion = _aliased(store, name, CHAMPION)
        is_champion = champion is not None and champion.version == version.version
        if not is_champion:
            store.set_registered_model_alias(name, CHALLENGER, version.version)
    alias = CHAMPION if is_champion else CHALLENGER
    return Registered(name=name, version=found.version, number=str(version.version), alias=alias)


def promote(
    name: str, *, again: bool = False, dry_run: bool = False, journal: Path | None = None
) -> promotion.PromotionDecision:
    """Make the challenger of `name` champion if the evidence on the test split says so; a line in the log either way.

    journal: of a challenger that follows an alert, which is judged on what is asked now. dry_run: decide, and change nothing.
    A challenger whose bundle was tampered with is refused, and one that was rolled back too, but for `again`. Raises
    LooplineError where there is no challenger, or where the champion cannot be fetched to compare with.
    """
    everything, model = settings.model(name)
    with _registry() as store:
        return _promote(store, name, policy(everything, model), again, dry_run, journal)


def _promote(
    store: MlflowClient, name: str, demands: promotion.PromotionPolicy, again: bool, dry_run: bool, journal: Path | None
) -> promotion.PromotionDecision:
    challenger, champion = _aliased(store, name, CHALLENGER), _aliased(store, name, CHAMPION)
    if challenger is None:
        raise LooplineError(f"{name} has no challenger: put one forward with `loopline release register {name}`")
    held = champion.tags[HASH] if champion else None
    with tempfile.TemporaryDirectory() as folder:
        theirs = _fetch(store, champion, Path(folder) / CHAMPION) if champion else None
        proof: dict[str, Any] = {"champion": held}
        try:
            ours = _fetch(store, challenger, Path(folder) / CHALLENGER)
        except BundleError as error:
            decision = promotion.PromotionDecision(
                promote=False, reasons=(f"the bundle is damaged: {error}",), figures={}
            )
        else:
            path = Path("data") / name / "manifest.parquet"
            a, b = evidence.gather(ours, theirs, path)
            now = current.gather(name, path, journal) if journal and theirs else None
            decision = promotion.decide(a, b, demands, now)
            proof |= {"test_set": a.test_set, "samples": a.n, **_sealed(decision.figures)}
    version = challenger.tags[HASH]
    if not again and (withdrawn := decisions.withdrawn(decisions.read().records, name, version)):
        decision = replace(decision, promote=False, reasons=(f"it was rolled back before: {withdrawn}",))
    if dry_run:
        return decision
    if not decision.promote:
        decisions.append(name, "refuse", bundle=version, champion=held, reasons=decision.reasons, evidence=proof)
        return decision
    _make_champion(store, challenger, "promote", held=held, reasons=decision.reasons, proof=proof)
    store.delete_registered_model_alias(name, CHALLENGER)
    return decision


def rollback(name: str, reason: str = "asked for") -> decisions.DecisionRecord:
    """Put back the champion before the present one, as the log tells; its bundle is fetched and verified first.

    Raises LooplineError where there is none to go back to, or its bundle is gone or damaged.
    """
    log = decisions.read()
    target = decisions.previous(log.records, name)
    with _registry() as store, tempfile.TemporaryDirectory() as folder:
        champion = _aliased(store, name, CHAMPION)
        if champion is None or target is None:
            raise LooplineError(f"{name} has no earlier champion to go back to, says {decisions.path()}")
        version = _version(store, name, target)
        if version is None:
            raise LooplineError(f"{name}: the earlier champion, bundle {target:.12}, is not in this registry")
        _fetch(store, version, Path(folder) / "bundle")
        held = champion.tags[HASH]
        return _make_champion(store, version, "rollback", held=held, reasons=(reason,), proof={"withdrawn": held})


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What the registry holds of a bundle: its number, tags and run, and the files, verified."""

    number: str
    tags: dict[str, str]
    run: str
    run_tags: dict[str, str]
    bundle: Bundle


class Away(LooplineError):
    """The registry does not answer."""


def fetch(name: str, version: str, into: Path) -> Stored:
    """The bundle `version` as it was registered, its files put into the folder `into`.

    Raises Away where there is no registry to ask, LooplineError where it does not have the bundle, or has another under its hash.
    """
    with _registry(create=False) as store:
        found = _version(store, name, version)
        if found is None:
            raise LooplineError(
                f"{name}: bundle {version:.12} is not in the registry: `loopline release register {name}`"
            )
        run = store.get_run(str(found.run_id))
        return Stored(
            number=str(found.version),
            tags=dict(found.tags),
            run=str(found.run_id),
            run_tags=dict(run.data.tags),
            bundle=_fetch(store, found, into),
        )


def follow(name: str, version: str, folder: Path) -> None:
    """Let the alias `champion` follow what serves: a rollout has promoted this version, or put it back, and its line is in the log.

    folder: its bundle, registered if it was not. Raises LooplineError where the registry refuses.
    """
    found = bundle.read(folder)
    if found.version != version:
        raise LooplineError(f"{folder} holds bundle {found.version:.12}, not {version:.12}")
    with _registry() as store:
        registered = _version(store, name, version) or _create(store, found)
        store.set_registered_model_alias(name, CHAMPION, registered.version)
        challenger = _aliased(store, name, CHALLENGER)
        if challenger is not None and challenger.version == registered.version:
            store.delete_registered_model_alias(name, CHALLENGER)


def history(names: Sequence[str] = (), at: datetime | None = None) -> decisions.DecisionLog:
    """Every decision on these models (none named: on all); with `at`, only those that made the champions of that moment."""
    log = decisions.read()
    records = log.records if at is None else tuple(decisions.champions(log.records, at=at).values())
    return decisions.DecisionLog(tuple(record for record in records if not names or record.model in names), log.damaged)


def policy(everything: settings.Settings, model: settings.ModelSettings) -> promotion.PromotionPolicy:
    """What params.yaml demands of a challenger of this model."""
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
    """The configured registry; what it refuses is said without a traceback. create: its SQLite file, where there is none."""
    from loopline.release import mlflow_store

    uri = mlflow_store.configured_uri()
    file = uri.removeprefix("sqlite:///")
    if file != uri and not create and not Path(file).exists():
        raise Away(f"there is no {file} here: MLFLOW_TRACKING_URI says where the registry is")
    try:
        store = mlflow_store.client()
    except mlflow_store.StoreError as error:
        raise Away(f"the model registry cannot be asked: {error}") from error
    try:
        yield store
    except mlflow_store.failures() as error:
        raise LooplineError(f"the model registry refused: {mlflow_store.explain(error, uri)}") from error


def _sealed(figures: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(figures, sort_keys=True, ensure_ascii=False)
    return {"figures": figures, "figures_sha256": hashlib.sha256(text.encode()).hexdigest()}


def _make_champion(
    store: MlflowClient, version: ModelVersion, action: str, *, held: str | None, reasons: Any, proof: dict[str, Any]
) -> decisions.DecisionRecord:
    """First the log, then the alias: a kill in between leaves a decision that the next call can carry out."""
    from loopline.release import mlflow_store

    new = version.tags[HASH]
    record = decisions.append(version.name, action, bundle=new, champion=new, reasons=reasons, evidence=proof)
    try:
        store.set_registered_model_alias(version.name, CHAMPION, version.version)
    except Exception as error:
        why = f"the registry could not be changed: {mlflow_store.explain(error, mlflow_store.configured_uri())}"
        decisions.append(version.name, "fail", bundle=new, champion=held, reasons=[why])
        raise LooplineError(f"{version.name}: {why}; the champion is still {held or 'none'}") from error
    return record


def _create(store: MlflowClient, found: Bundle) -> ModelVersion:
    """Log the bundle and its ONNX model to the training's run, or to a new one, and make a version of the registry."""
    from mlflow.exceptions import MlflowException

    from loopline.release import mlflow_store, tracking
    from loopline.release.mlflow_model import log_onnx_model

    name, lineage = found.manifest.name, found.manifest.lineage
    experiment_id = mlflow_store.experiment(store, name)
    run = mlflow_store.find(store, name, tag=HASH, value=found.version)
    if run is None:  # the bundle came from elsewhere, a DVC remote for instance
        run = store.create_run(experiment_id, run_name=f"{name}-released", tags={"model": name, HASH: found.version})
    run_id = run.info.run_id
    model_id = log_onnx_model(run_id, found.folder)
    store.log_artifacts(run_id, str(found.folder), _artifact(found.version))
    try:
        store.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {HASH: found.version, "data_sha256": lineage.data, "code_sha256": lineage.code}
    tags |= {"parameters_sha256": lineage.parameters, "git_revision": tracking.revision()}
    tags |= {"quantization": found.manifest.quantization}
    return store.create_model_version(name, f"models:/{model_id}", run_id=run_id, tags=tags, model_id=model_id)


def _committed(revision: str) -> bool:
    return revision != "none" and not revision.endswith("-dirty")


def _artifact(version: str) -> str:
    return f"released/{version}"


def _version(store: MlflowClient, name: str, version: str) -> ModelVersion | None:
    found = store.search_model_versions(f"name = '{name}' and tags.{HASH} = '{version}'")
    return found[0] if found else None


def _aliased(store: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return store.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _fetch(store: MlflowClient, version: ModelVersion, into: Path) -> Bundle:
    """The bundle of a registered version, verified against itself and against the hash that it was registered with."""
    from loopline.release import mlflow_store

    into.mkdir(parents=True)
    wanted = version.tags[HASH]
    try:
        folder = Path(store.download_artifacts(str(version.run_id), _artifact(wanted), str(into)))
        signed = f"{_artifact(wanted)}.sig"
        if any(one.path == signed for one in store.list_artifacts(str(version.run_id), "released")):
            store.download_artifacts(str(version.run_id), signed, str(into))
    except mlflow_store.failures() as error:
        why = mlflow_store.explain(error, mlflow_store.configured_uri())
        raise LooplineError(
            f"{version.name}: bundle {wanted:.12} cannot be fetched from the registry: {why}"
        ) from error
    found = bundle.read(folder)
    if (found.version, found.manifest.name) != (wanted, version.name):
        raise BundleError(f"{version.name}: the registry holds bundle {found.version:.12}, registered was {wanted:.12}")
    return found
