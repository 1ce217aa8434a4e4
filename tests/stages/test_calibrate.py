"""The stage that makes the drift reference, on tiny real parts."""

import json
from pathlib import Path

import brightness
import pytest

from loopline.data import manifest
from loopline.drift import golden, reference
from loopline.errors import LooplineError
from loopline.stages import calibrate, files


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository after the stage `quantize`: half of its images are held out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(brightness.params(calibrate={"bins": 8, "false_alarms": 0.1, "streams": 100}))
    models = Path("models/classifier")
    for stage in ("export", "quantize", "train"):
        (models / stage).mkdir(parents=True)
    files.write_json(models / "export/spec.json", brightness.described().spec.to_dict())
    brightness.onnx_model(models / "quantize/model.onnx", 127.5)
    return tmp_path


def held_out(count):
    """A manifest with so many validation samples, one of each brightness, and a training split that is all black."""
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


def test_the_reference_is_of_validation_and_test_split_and_of_no_training_row(project):
    held_out(240)
    calibrate.main("classifier")
    made = reference.read(Path("models/classifier/calibrate/drift.json"))
    assert made.samples == 160, "a third makes the bins"
    for signal in made.signals.values():
        assert sum(signal.counts) == made.samples
    darkest = made.signals["brightness"].counts[:2]
    assert sum(darkest) < 40, "300 black training images would stand out"
    assert made.quality.value == 1
    assert sum(map(sum, made.labels.confusion)) == made.samples
    samples = golden.read(Path("models/classifier/calibrate/golden.json"))
    assert [one.answer["label"] for one in samples] == ["dark"] * 4
    assert json.loads(Path("models/classifier/calibrate/drift.json").read_text())["promise"]["false_alarms"] == 0.1


def test_too_few_samples_are_refused(project):
    held_out(40)
    with pytest.raises(
        LooplineError, match=r"40 samples in val and test, at least 60 .* raise models\.classifier\.split"
    ):
        calibrate.main("classifier")
    assert not Path("models/classifier/calibrate/drift.json").exists()
