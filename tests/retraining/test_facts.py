"""The guard's evidence, gathered from a real Prometheus and real bundles."""

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
    """A repository with a bundle whose model is right on 90 % of each class."""
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
    """ask(counts by signal and bin, further metric lines) -> the evidence once Prometheus has scraped these counts."""
    target = prometheus.Target()
    (repository / "prometheus").mkdir()
    server = prometheus.Prometheus(repository / "prometheus", [target.address], "groups: []\n")
    version = bundle.read(repository / "models/classifier/bundle").version[:12]

    def gather(counts, more="", **values):
        for share in (0, 1):
            rows = {(signal, bin_): share * n for signal, bins in counts.items() for bin_, n in bins.items()}
            target.text = retrainers.metrics(version, rows=rows, **values) + more.format(version=version)
            scraped = (
                f"sum(loopline_signal_rows_total) == {sum(rows.values())} and on () count(loopline:drift_score) > 0"
            )
            prometheus.eventually(lambda scraped=scraped: server.query(scraped))
        sources = facts.Sources(prometheus=server.url, journal=repository / "none", repository=repository, window="1m")
        return facts.gather("classifier", version, 0.0, sources)

    yield gather
    server.close()
    target.close()


def counts_of(brightness_counts, class_counts, confidence_bin="02"):
    return {"brightness": brightness_counts, "predicted_class": class_counts, "top_probability": {confidence_bin: 200}}


def test_a_new_mix_of_the_same_classes_is_recognised(ask):
    evidence = ask(counts_of(EVENLY, MORE_BRIGHT))
    assert evidence.unknown is None
    assert evidence.new_mix


def test_images_that_moved_further_than_the_classes_are_more_than_a_new_mix(ask):
    evidence = ask(counts_of({"05": 200}, MORE_BRIGHT, "00"))
    assert evidence.unknown is None
    assert not evidence.new_mix
    assert evidence.drifted
    assert evidence.harmful


def test_metrics_of_another_model_or_version_do_not_count(ask):
    other = 'ALERTS{{alertname="Skew",alertstate="firing",model="text"}} 1\n'
    other += 'ALERTS{{alertname="ConstantInputs",alertstate="firing",model="classifier",version="123"}} 1\n'
    other += 'ALERTS{{alertname="BadInputs",alertstate="pending",model="classifier"}} 1\n'
    other += 'ALERTS{{alertname="ConstantInputs",alertstate="firing",model="classifier",version="{version}"}} 1\n'
    labelled = 'loopline:{what}{{{{model="classifier",version="{{version}}"}}}} {n}\n'
    other += labelled.format(what="labelled_samples", n=1000) + labelled.format(what="quality_labelled", n=0.95)
    evidence = ask(counts_of(EVENLY, AS_BEFORE), other, alerts=("SentinelSilent",), loss=0.01)
    assert evidence.firing == {"ConstantInputs", "SentinelSilent"}
    assert (evidence.drifted, evidence.harmful, evidence.new_mix) == (True, False, False)
    assert evidence.labels == {"bright": 0, "dark": 0}
    low, high, least = evidence.accuracy
    assert low < 0.95 < high
    assert least == pytest.approx(0.85)


def test_the_evidence_is_unknown_without_the_bundle_or_prometheus(repository):
    sources = facts.Sources(
        prometheus=f"http://127.0.0.1:{prometheus.free_port()}", journal=repository, repository=repository, window="1m"
    )
    version = bundle.read(repository / "models/classifier/bundle").version
    assert "cannot be reached" in facts.gather("classifier", version, 0.0, sources).unknown
    assert "version unknown is not here" in facts.gather("classifier", "", 0.0, sources).unknown
    (repository / "models/classifier/bundle/model.onnx").write_bytes(b"changed")
    assert "model.onnx" in facts.gather("classifier", version, 0.0, sources).unknown


def test_a_deployed_bundle_is_found_after_its_training_folder_is_gone(repository):
    served = bundle.read(repository / "models/classifier/bundle")
    deployed = repository / ".loopline/bundles/classifier" / served.version
    shutil.move(served.folder, deployed)
    bundles.classifier(repository / "models/classifier/bundle")
    assert facts.served_bundle("classifier", served.version[:12], repository).folder == deployed


def test_a_partial_copy_and_a_damaged_other_version_are_ignored(repository):
    trained = repository / "models/classifier/bundle"
    version = bundle.read(trained).version
    for name in (f"{version}.partial", "0" * 64):
        broken = repository / ".loopline/bundles/classifier" / name
        shutil.copytree(trained, broken)
        (broken / "model.onnx").write_bytes(b"half")
    assert facts.served_bundle("classifier", version[:12], repository).folder == trained
