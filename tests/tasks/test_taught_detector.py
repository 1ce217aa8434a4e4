"""A detector that learns from the feature maps of a larger one, by ultralytics' distillation."""

from dataclasses import replace

import pytest
from safetensors.torch import load_file
from shapes import shapes, small

from loopline.errors import LooplineError
from loopline.tasks.detection import training as detection
from loopline.tasks.detection.parameters import DetectorTeacher
from loopline.tasks.spec import ImageInput


class Killed(Exception):
    pass


def run(folder, model, taught=None, log=lambda *_: None):
    data = shapes(48, seed=0), shapes(16, seed=1)
    detection.train(*data, model, seed=0, out=folder / "train", work=folder / "work", log=log, taught=taught)
    return folder / "train"


def figures(folder, column):
    _, *rows = (folder / "history.csv").read_text().splitlines()
    return [float(row.split(",")[column]) for row in rows]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return run(tmp_path_factory.mktemp("teacher"), small())


def taught_by(gain=6.0, **change):
    return small(teacher=DetectorTeacher(model="larger", version="0" * 12, gain=gain), **change)


def test_a_taught_detector_has_the_files_of_any_other_and_its_teacher_stays_as_it_is(teacher, tmp_path, monkeypatch):
    networks, load = [], detection._teacher
    monkeypatch.setattr(detection, "_teacher", lambda *given: networks.append(load(*given)) or networks[-1])
    taught = run(tmp_path / "taught", taught_by(epochs=2), teacher)
    alone = run(tmp_path / "alone", small(epochs=2))
    tensors, others = (load_file(folder / "model.safetensors") for folder in (taught, alone))
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in others.items()
    }
    assert any((tensors[name] != others[name]).any() for name in tensors)
    assert figures(taught, 1)[0] > figures(alone, 1)[0], "the distance to the teacher's maps is part of the loss"
    (network,) = networks
    before = load_file(teacher / "model.safetensors")
    assert all((tensor == before[name]).all() for name, tensor in network.state_dict().items())
    assert not network.network.training
    assert not list((tmp_path / "taught/work").iterdir())


def test_a_gain_of_nearly_nothing_is_the_training_without_a_teacher(teacher, tmp_path):
    taught = run(tmp_path / "taught", taught_by(gain=1e-12, epochs=1), teacher)
    alone = run(tmp_path / "alone", small(epochs=1))
    assert figures(taught, 1) == pytest.approx(figures(alone, 1), rel=0.02)


def test_a_killed_training_with_a_teacher_resumes_and_ends_with_the_same_bits(teacher, tmp_path):
    def log(epoch, _):
        if epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "killed", taught_by(epochs=3), teacher, log)
    resumed = run(tmp_path / "killed", taught_by(epochs=3), teacher)
    whole = run(tmp_path / "whole", taught_by(epochs=3), teacher)
    for name in ("model.safetensors", "history.csv", "config.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_a_teacher_of_other_images_is_refused(teacher):
    shape = detection._load(teacher)[1].image
    assert isinstance(shape, ImageInput)
    with pytest.raises(LooplineError, match="takes images of another shape"):
        detection._teacher(teacher, replace(shape, height=shape.height * 2))


def test_a_teacher_with_feature_maps_of_other_strides_is_refused(teacher, tmp_path):
    architecture = tmp_path / "one.yaml"
    architecture.write_text(
        "nc: 2\nbackbone:\n  - [-1, 1, Conv, [16, 3, 2]]\n  - [-1, 1, Conv, [24, 3, 2]]\n  - [-1, 1, Conv, [32, 3, 2]]\n"
        "head:\n  - [[2], 1, Detect, [nc]]\n"
    )
    with pytest.raises(
        LooplineError,
        match=r"train\.teacher: its feature maps have the strides \[8, 16\], those of this model have \[8\]",
    ):
        run(tmp_path, taught_by(architecture=str(architecture), epochs=1), teacher)
