"""The stage that makes the drift reference, on a tiny real graph."""

import json
from pathlib import Path

import brightness
import pytest

from loopline.data import manifest
from loopline.drift import golden, reference
from loopline.errors import LooplineError
from loopline.stages import calibrate, stage_files


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository after the stage `quantize`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(brightness.params(calibrate={"bins": 8, "false_alarms": 0.1, "streams": 100}))
    models = Path("models/classifier")
    for stage in ("export", "quantize", "train"):
        (models / stage).mkdir(parents=True)
    stage_files.write_json(models / "export/spec.json", brightness.described().spec.to_dict())
    brightness.onnx_model(models / "quantize/model.onnx", 127.5)
    return tmp_path


def held_out(count):
    """Write a manifest with `count` samples in validation and test, of rising brightness, and 300 black ones in training."""
    every = [
        manifest.Sample(
            id=f"{n:064x}",
            source="s",
            path=f"{n}.png",
            split="val" if n % 2 else "test",
            label="bright" if n % 256 > 127 else "dark",
            image=brightness.png(n % 256),
            width=8,
            height=8,
        )
        for n in range(count)
    ]
    black = {"source": "s", "split": "train", "label": "dark", "image": brightness.png(0), "width": 8, "height": 8}
    every += [manifest.Sample(id=f"{n:064x}", path=f"{n}.png", **black) for n in range(10_000, 10_300)]
    manifest.write(Path("data/classifier/manifest.parquet"), every, task="classification", labels=brightness.LABELS)


def test_the_reference_counts_validation_and_test_samples_and_no_training_sample(project):
    held_out(240)
    calibrate.main("classifier")
    drift = reference.read(Path("models/classifier/calibrate/drift.json"))
    assert drift.samples == 160, "a third makes the bins"
    for signal in drift.signals.values():
        assert sum(signal.counts) == drift.samples
    darkest = drift.signals["brightness"].counts[:2]
    assert sum(darkest) < 40, "300 black training images would stand out"
    assert drift.quality.value == 1
    assert sum(map(sum, drift.labels.confusion)) == drift.samples
    samples = golden.read(Path("models/classifier/calibrate/golden.json"))
    assert [sample.answer["label"] for sample in samples] == ["dark"] * 4
    assert json.loads(Path("models/classifier/calibrate/drift.json").read_text())["promise"]["false_alarms"] == 0.1


def test_too_few_samples_are_refused(project):
    held_out(40)
    with pytest.raises(
        LooplineError,
        match=r"40 samples in val and test, at least 60 .* raise val or test in models\.classifier\.split",
    ):
        calibrate.main("classifier")
    assert not Path("models/classifier/calibrate/drift.json").exists()
