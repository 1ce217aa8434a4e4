"""Releases with a real MLflow store: champion, challenger, refusal, rollback."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from brightness import write_manifest

from loopline import cli
from loopline.errors import LooplineError
from loopline.release import decisions, mlflow_store, registry
from loopline.release.bundle import BundleError

CHALLENGE = Path(__file__).parents[2] / "scripts/challenge"
LABELS3 = ("bright", "dark", "grey")


def champion():
    version = mlflow_store.client().get_model_version_by_alias("classifier", "champion")
    return version.tags["bundle_sha256"]


def aliases():
    numbers = mlflow_store.client().get_registered_model("classifier").aliases
    return {alias: str(number) for alias, number in numbers.items()}


def release(bundle):
    registry.register(bundle.folder)
    decision = registry.promote("classifier")
    assert decision.promote, decision.reasons


def test_registering_makes_a_challenger_with_its_lineage_in_tags(project, make):
    good = make("good", 130)
    registered = registry.register(good.folder)
    assert (registered.name, registered.version, registered.number, registered.alias) == (
        "classifier",
        good.version,
        "1",
        "challenger",
    )
    version = mlflow_store.client().get_model_version_by_alias("classifier", "challenger")
    assert version.tags["bundle_sha256"] == good.version
    assert version.tags["data_sha256"] == "a" * 64
    assert version.tags["git_revision"] == "none"


def test_the_registered_model_is_the_onnx_file_with_its_signature(project, make):
    registry.register(make("good", 130).folder)
    mlflow.set_tracking_uri(mlflow_store.configured_uri())
    loaded = mlflow.onnx.load_model("models:/classifier@challenger")
    assert [output.name for output in loaded.graph.output] == ["probabilities", "embedding"]
    signature = mlflow.models.get_model_info("models:/classifier@challenger").signature
    assert [tensor.name for tensor in signature.inputs.inputs] == ["image"]


def test_registering_the_same_bundle_twice_makes_one_version(project, make):
    good = make("good", 130)
    assert registry.register(good.folder) == registry.register(good.folder)
    assert len(mlflow_store.client().search_model_versions("name = 'classifier'")) == 1


def test_registering_the_champion_again_leaves_it_champion(project, make):
    good = make("good", 130)
    release(good)
    assert registry.register(good.folder).alias == "champion"
    assert aliases() == {"champion": "1"}


def test_a_tampered_bundle_is_not_registered(project, make):
    good = make("good", 130)
    (good.folder / "drift.json").write_text("{}")
    with pytest.raises(BundleError, match=r"drift\.json was changed"):
        registry.register(good.folder)


def test_the_first_challenger_becomes_champion_if_it_holds_the_floors(project, make):
    good = make("good", 160)
    release(good)
    assert champion() == good.version
    [record] = decisions.read().records
    assert (record.action, record.champion, record.actor) == ("promote", good.version, "tester")
    assert record.evidence["samples"] == 256
    assert record.evidence["champion"] is None


def test_the_first_challenger_is_refused_below_the_floors(project, make):
    registry.register(make("bad", 250).folder)
    decision = registry.promote("classifier")
    assert not decision.promote
    assert "the floor is 0.6" in decision.reasons[0]
    assert aliases() == {"challenger": "1"}
    assert decisions.read().records[0].action == "refuse"


def test_a_better_challenger_becomes_champion(project, make):
    release(make("old", 160))
    better = make("new", 130)
    release(better)
    assert champion() == better.version
    assert aliases() == {"champion": "2"}
    assert decisions.read().records[-1].evidence["figures"]["gain"]["low"] > 0


def test_a_worse_challenger_is_refused_with_reasons(project, make):
    good = make("old", 130)
    release(good)
    registry.register(make("worse", 160).folder)
    decision = registry.promote("classifier")
    assert not decision.promote
    assert any("no proof of a gain in accuracy" in reason for reason in decision.reasons)
    assert champion() == good.version
    record = decisions.read().records[-1]
    assert (record.action, record.champion) == ("refuse", good.version)
    assert record.reasons == decision.reasons


def test_a_challenger_tampered_with_in_the_store_is_refused(project, make):
    good = make("old", 160)
    release(good)
    registry.register(make("new", 130).folder)
    [stored] = (project / "mlruns").rglob(f"released/{registry.decisions.read().records[0].bundle}")
    [tampered] = [path for path in (project / "mlruns").rglob("released/*") if path != stored]
    (tampered / "model.onnx").write_bytes(b"other")
    decision = registry.promote("classifier")
    assert not decision.promote
    assert "model.onnx was changed" in decision.reasons[0]
    assert champion() == good.version


def test_a_bundle_swapped_for_another_whole_one_is_refused(project, make):
    registry.register(make("new", 130).folder)
    other = make("other", 131)
    [stored] = (project / "mlruns").rglob("released/*")
    for path in stored.rglob("*"):
        if path.is_file():
            path.write_bytes((other.folder / path.relative_to(stored)).read_bytes())
    decision = registry.promote("classifier")
    assert not decision.promote
    assert "in place of" in decision.reasons[0]


def test_rollback_restores_the_previous_champion_and_only_once(project, make):
    old, new = make("old", 160), make("new", 130)
    release(old)
    release(new)
    record = registry.rollback("classifier", "errors after the release")
    assert champion() == old.version == record.champion
    assert record.reasons == ("errors after the release",)
    with pytest.raises(LooplineError, match="no earlier champion"):
        registry.rollback("classifier")


def test_what_was_rolled_back_is_not_promoted_again_by_itself(project, make):
    old, new = make("old", 160), make("new", 130)
    release(old)
    release(new)
    registry.rollback("classifier", "errors after the release")
    registry.register(new.folder)
    decision = registry.promote("classifier")
    assert not decision.promote
    assert decision.reasons[0].endswith("Z, errors after the release")
    assert registry.promote("classifier", again=True).promote
    assert champion() == new.version


def test_history_gives_the_champion_of_a_time(project, make):
    old, new = make("old", 160), make("new", 130)
    release(old)
    release(new)
    registry.rollback("classifier")
    first, second, third = (record.time for record in decisions.read().records)
    answers = [registry.history(["classifier"], decisions.moment(time)).records for time in (first, second, third)]
    assert [records[0].champion for records in answers] == [old.version, new.version, old.version]
    assert registry.history(["classifier"], decisions.moment("2020-01-01")).records == ()
    assert len(registry.history(["classifier"]).records) == 3
    assert registry.history(["text"]).records == ()


def test_a_challenger_that_forgot_a_label_is_refused(project, make):
    write_manifest(project / "data/classifier/manifest.parquet", labels=LABELS3)
    release(make("three", 130, labels=LABELS3))
    registry.register(make("two", 127.5).folder)
    decision = registry.promote("classifier")
    assert any("labels that the challenger does not: grey" in reason for reason in decision.reasons)


def test_a_challenger_with_a_new_label_may_win(project, make):
    release(make("two", 160))
    write_manifest(project / "data/classifier/manifest.parquet", labels=LABELS3)
    new = make("three", 127.5, labels=LABELS3)
    release(new)
    assert champion() == new.version


def test_a_bigger_challenger_is_refused_however_good_it_is(project, make):
    release(make("old", 160))
    registry.register(make("big", 127.5, padding=10_000).folder)
    decision = registry.promote("classifier")
    assert len(decision.reasons) == 1
    assert "times the champion's size" in decision.reasons[0]


def test_the_champion_stays_and_the_log_records_it_if_the_registry_fails(project, make, monkeypatch):
    good = make("good", 130)
    registry.register(good.folder)
    from mlflow import MlflowClient

    def lost(*_):
        raise OSError("connection lost")

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", lost)
    with pytest.raises(LooplineError, match="connection lost"):
        registry.promote("classifier")
    assert [record.action for record in decisions.read().records] == ["promote", "fail"]
    assert decisions.champions(decisions.read().records) == {}


def test_without_a_challenger_promote_names_the_next_step(project):
    with pytest.raises(LooplineError, match="loopline release register"):
        registry.promote("classifier")


def test_an_unknown_model_is_named(project):
    with pytest.raises(LooplineError, match="no model 'nobody'"):
        registry.promote("nobody")


def test_the_alias_follows_a_rollout_without_another_line_in_the_log(project, make):
    first, second = make("first", 100), make("second", 127.5)
    registry.register(first.folder)
    registry.follow("classifier", first.version, first.folder)
    assert aliases() == {"champion": "1"}
    registry.register(second.folder)
    assert aliases() == {"champion": "1", "challenger": "2"}
    registry.follow("classifier", second.version, second.folder)
    assert aliases() == {"champion": "2"}
    registry.follow("classifier", first.version, first.folder)  # a rollback
    assert aliases() == {"champion": "1"}
    assert decisions.read().records == ()
    with pytest.raises(LooplineError, match="holds bundle"):
        registry.follow("classifier", first.version, second.folder)
    third = make("third", 50)
    registry.follow("classifier", third.version, third.folder)  # it was not registered before
    assert aliases() == {"champion": "3"}


def test_a_dry_run_reports_the_decision_and_changes_nothing(project, make):
    release(make("old", 160))
    for threshold, wins in ((250, False), (130, True)):
        registry.register(make(f"challenger-{threshold}", threshold).folder)
        before, log = aliases(), decisions.path().read_bytes()
        decision = registry.promote("classifier", dry_run=True)
        assert (aliases(), decisions.path().read_bytes()) == (before, log)
        assert decision.promote is wins
        assert registry.promote("classifier").promote is wins


def test_progress_goes_to_standard_error_and_the_result_to_standard_output(project, make, monkeypatch, capsys):
    (project / "models/classifier").mkdir(parents=True)
    shutil.copytree(make("good", 130).folder, project / "models/classifier/bundle")
    for verb, doing, result in (
        ("register", "puts the bundle in the registry", "challenger"),
        ("promote", "weighs them", "promoted"),
    ):
        assert cli.main(["release", verb, "classifier"]) == 0
        printed = capsys.readouterr()
        assert doing in printed.err
        assert result in printed.out
        assert doing not in printed.out


def challenge(project, *words):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run([CHALLENGE, *words], cwd=project, env=environment, capture_output=True, text=True)


def test_the_challenge_of_a_workflow_weighs_registers_and_promotes_only_when_told(project, make):
    folder = project / "models/classifier/bundle"
    folder.parent.mkdir(parents=True)
    shutil.copytree(make("good", 130).folder, folder)
    assert challenge(project).returncode == 0
    assert set(aliases()) == {"challenger"}
    assert challenge(project, "--promote").returncode == 0
    assert set(aliases()) == {"champion"}
    assert "is champion already" in challenge(project, "--promote", "classifier").stdout

    shutil.rmtree(folder)
    shutil.copytree(make("worse", 160).folder, folder)
    good = champion()
    for words in ((), ("--promote",)):
        done = challenge(project, *words)
        assert done.returncode == 2, done.stderr
        assert champion() == good
        assert done.stdout.strip() in (project / "reports/challenge.md").read_text(encoding="utf-8")
