"""What the guard is told: asked of a real Prometheus and read from real bundles."""

import json
import shutil
from dataclasses import replace

import brightness
import bundles
import prometheus
import pytest
import retrainers

from loopline.drift.reference import Reference, ReferenceLabels
from loopline.release import bundle
from loopline.retraining import facts

pytestmark = prometheus.needed
AS_BEFORE = {"00": 100, "01": 100}
MORE_BRIGHT = {"00": 180, "01": 20}
EVENLY = {"01": 50, "02": 50, "03": 50, "04": 50}


@pytest.fixture
def repository(tmp_path):
    """A bundle of a model that is always right: the classes' shares are the predicted ones'."""
    reference = Reference.from_dict(brightness.reference(brightness.described().spec))
    reference = replace(reference, labels=ReferenceLabels(names=brightness.LABELS, confusion=((90, 10), (10, 90))))
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "drift.json").write_text(json.dumps(reference.to_dict()))
    model = brightness.onnx_model(parts / "model.onnx", 130)
    folder = tmp_path / "models/classifier/bundle"
    folder.parent.mkdir(parents=True)
    bundle.write(folder, brightness.described(), model=model, drift=parts / "drift.json", card="# c\n", pictures=[])
    return tmp_path


@pytest.fixture
def ask(repository):
    """ask(counts by signal and bin, lines besides) -> the evidence once Prometheus has seen these counts arise."""
    target = prometheus.Target()
    (repository / "prometheus").mkdir()
    server = prometheus.Prometheus(repository / "prometheus", [target.address], "groups: []\n")
    version = bundle.read(repository / "models/classifier/bundle").version[:12]

    def gather(counts, more="", **said):
        for share in (0, 1):
            rows = {(signal, bin_): share * n for signal, bins in counts.items() for bin_, n in bins.items()}
            target.text = retrainers.said(version, rows=rows, **said) + more.format(version=version)
            there = f"sum(loopline_signal_rows_total) == {sum(rows.values())} and on () count(loopline:drift_score) > 0"
            prometheus.eventually(lambda there=there: server.query(there))
        sources = facts.Sources(prometheus=server.url, journal=repository / "none", repository=repository, window="1m")
        return facts.gather("classifier", version, 0.0, sources)

    yield gather
    server.close()
    target.close()


def signals(brightness_, classes, sure="02"):
    return {"brightness": brightness_, "predicted_class": classes, "top_probability": {sure: 200}}


def test_a_new_mix_of_the_same_classes_is_told_from_drift_of_the_images(ask):
    found = ask(signals(EVENLY, MORE_BRIGHT))
    assert found.unknown is None
    assert found.new_mix


def test_where_the_images_moved_further_it_is_no_new_mix_alone(ask):
    found = ask(signals({"05": 200}, MORE_BRIGHT, "00"))
    assert found.unknown is None
    assert not found.new_mix
    assert found.drifted
    assert found.harmful


def test_what_is_of_another_model_or_version_does_not_count(ask):
    other = 'ALERTS{{alertname="Skew",alertstate="firing",model="text"}} 1\n'
    other += 'ALERTS{{alertname="ConstantInputs",alertstate="firing",model="classifier",version="123"}} 1\n'
    other += 'ALERTS{{alertname="BadInputs",alertstate="pending",model="classifier"}} 1\n'
    other += 'ALERTS{{alertname="ConstantInputs",alertstate="firing",model="classifier",version="{version}"}} 1\n'
    labelled = 'loopline:{what}{{{{model="classifier",version="{{version}}"}}}} {n}\n'
    other += labelled.format(what="labelled_samples", n=1000) + labelled.format(what="quality_labelled", n=0.95)
    found = ask(signals(EVENLY, AS_BEFORE), other, alerts=("SentinelSilent",), loss=0.01)
    assert found.firing == {"ConstantInputs", "SentinelSilent"}
    assert (found.drifted, found.harmful, found.new_mix) == (True, False, False)
    assert found.labels == {"bright": 0, "dark": 0}
    low, high, least = found.accuracy
    assert low < 0.95 < high
    assert least == pytest.approx(0.85)


def test_nothing_is_known_of_a_version_without_a_bundle_or_of_a_prometheus_that_is_away(repository):
    sources = facts.Sources(
        prometheus=f"http://127.0.0.1:{prometheus.free_port()}", journal=repository, repository=repository, window="1m"
    )
    version = bundle.read(repository / "models/classifier/bundle").version
    assert "cannot be reached" in facts.gather("classifier", version, 0.0, sources).unknown
    assert "version unknown is not here" in facts.gather("classifier", "", 0.0, sources).unknown
    (repository / "models/classifier/bundle/model.onnx").write_bytes(b"changed")
    assert "model.onnx" in facts.gather("classifier", version, 0.0, sources).unknown


def test_a_deployed_bundle_is_found_when_its_folder_of_training_is_gone(repository):
    found = bundle.read(repository / "models/classifier/bundle")
    deployed = repository / ".loopline/bundles/classifier" / found.version
    shutil.move(found.folder, deployed)
    bundles.classifier(repository / "models/classifier/bundle")
    assert facts.served_bundle("classifier", found.version[:12], repository).folder == deployed


def test_half_a_copy_and_damage_of_another_version_are_in_nobody_s_way(repository):
    trained = repository / "models/classifier/bundle"
    version = bundle.read(trained).version
    for name in (f"{version}.partial", "0" * 64):
        broken = repository / ".loopline/bundles/classifier" / name
        shutil.copytree(trained, broken)
        (broken / "model.onnx").write_bytes(b"half")
    assert facts.served_bundle("classifier", version[:12], repository).folder == trained
