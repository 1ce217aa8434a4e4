"""A finished .pt of ultralytics becomes a detector of Loopline, without training and without running what is in the file."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from adopting import adopt as adopt_in
from adopting import cloned

from loopline.errors import LooplineError
from loopline.lib import sessions
from loopline.release import bundle
from loopline.settings import Adopt
from loopline.tasks.detection import task, yolo_network
from loopline.tasks.detection import training as detection
from loopline.training import parity

sys.path.insert(0, str(Path(__file__).parent))
from shapes import LABELS, SIDE, SMALL, shapes, small

NAMES = {0: "square", 1: "disc"}  # another order than that of the data


def learnt(folder: Path) -> Path:
    """Train the small detector; return the folder of its training."""
    splits = shapes(48, seed=0), shapes(16, seed=1)
    out, work = folder / "train", folder / "work"
    detection.train(*splits, small(), seed=0, out=out, work=work, log=lambda *_: None)
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return learnt(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def checkpoint(trained) -> Path:
    return saved(trained)


def saved(trained: Path) -> Path:
    """Write best.pt as ultralytics does: the trained module itself in half precision, its classes in the order of NAMES."""
    network, _ = detection._load(trained)
    model = network.network
    swapped = [LABELS.index(NAMES[number]) for number in range(2)]
    for layer in model.model[-1].cv3:
        layer[-1].weight.data, layer[-1].bias.data = layer[-1].weight.data[swapped], layer[-1].bias.data[swapped]
    model.names, model.args, model.criterion = NAMES, {}, None  # the last two as its trainer leaves them
    path = trained.parent / "best.pt"
    content = {"epoch": -1, "model": model.half(), "ema": None, "train_args": {"imgsz": SIDE}, "version": "8"}
    torch.save(content, path)
    return path


def adopt(path: Path, out: Path, **change) -> Path:
    model = small().model_copy(update={"train": Adopt(adopt=str(path), **change)})
    splits = shapes(48, seed=0), shapes(16, seed=1)
    detection.train(*splits, model, seed=0, out=out / "train", work=out / "work", log=lambda *_: None)
    return out / "train"


def test_it_is_as_good_as_before_and_its_classes_have_the_order_of_the_data(trained, checkpoint, tmp_path):
    adopted = adopt(checkpoint, tmp_path)
    test = shapes(16, seed=2)
    figures = []
    for folder in (trained, adopted):
        spec = detection.export(folder, test, test, small(), out=folder.parent / "model.onnx")
        inputs = task.TASK.preprocessor(spec, folder)(test.inputs)
        outputs = sessions.run(folder.parent / "model.onnx", inputs)
        figures.append(task.TASK.scorer(outputs, test, spec)(None)["map50"])
        parity.check(detection.reference(folder)(inputs), outputs, tolerance=1e-3, what="they")
    assert figures[0] > 0.9
    assert figures[1] == pytest.approx(figures[0], abs=0.02), "half precision rounds the weights"
    assert (adopted / "history.csv").read_text().startswith("epoch,val_loss,map50,map50_95\n1,")


def test_what_it_takes_is_read_from_the_file(checkpoint):
    adoptable = detection.adoptable(str(checkpoint))
    assert adoptable.input == {"height": SIDE, "width": SIDE, "channels": 3}
    assert len(adoptable.weights_sha256) == 64


def test_classes_with_other_names_are_refused(checkpoint, tmp_path):
    with pytest.raises(LooplineError, match="has the classes square, disc, the data have disc, ring"):
        yolo_network.adopt(
            str(checkpoint), ("disc", "ring"), detection.ImageInput(height=SIDE, width=SIDE, channels=3), None
        )


def test_another_hash_is_refused(checkpoint, tmp_path):
    with pytest.raises(LooplineError, match=r"has sha256 .*, but train\.weights_sha256 is 00"):
        adopt(checkpoint, tmp_path, weights_sha256="00")


class Planted:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("way", ["adopt", "pretrained"])
def test_code_in_a_checkpoint_is_never_run(way, checkpoint, tmp_path):
    planted, marker = tmp_path / "planted.pt", tmp_path / "it ran"
    torch.save({"model": Planted(marker), "train_args": {}}, planted)
    torch.load(planted, weights_only=False)
    assert marker.exists(), "the file is as dangerous as it should be"
    marker.unlink()
    with pytest.raises(LooplineError, match=r"planted\.pt cannot be read as a \.pt of ultralytics"):
        if way == "adopt":
            yolo_network.finished(str(planted))
        else:
            yolo_network.start_from(detection._load(checkpoint.parent / "train")[0].network, str(planted))
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"\x89PNG", pickle.dumps({"a": 1}), None])
def test_what_is_no_checkpoint_is_one_message(content, tmp_path):
    path = tmp_path / "file.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LooplineError, match=r"file\.pt('| )"):
        yolo_network.finished(str(path))


def changed(checkpoint: Path, path: Path, **change) -> Path:
    content = torch.load(checkpoint, weights_only=False)
    for name, value in change.items():
        if name == "head":
            content["model"].model[-1] = value
        elif name == "names":
            content["model"].names = value
        else:
            content[name] = value
    torch.save(content, path)
    return path


def test_names_may_be_a_list_and_the_size_may_be_missing(checkpoint, tmp_path):
    path = changed(checkpoint, tmp_path / "list.pt", names=["square", "disc"], train_args={"imgsz": None})
    shape = detection.ImageInput(height=SIDE, width=SIDE, channels=3)
    yolo_network.adopt(str(path), LABELS, shape, None)
    assert yolo_network.finished(str(path))[1] == 640


def test_other_heads_and_quantized_weights_are_refused(checkpoint, tmp_path):
    head = yolo_network.DetectionModel(str(SMALL), ch=3, verbose=False).model[0]
    with pytest.raises(LooplineError, match="ends with Conv: only plain detectors can be used"):
        yolo_network.finished(str(changed(checkpoint, tmp_path / "head.pt", head=head)))
    with pytest.raises(LooplineError, match=r"holds quantized weights|cannot be read"):
        yolo_network.finished(str(changed(checkpoint, tmp_path / "quantized.pt", modelopt={"mode": "int8"})))


def test_a_version_of_ultralytics_that_would_run_code_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(yolo_network.ultralytics_tasks, "SAFE_LOAD", False)
    with pytest.raises(LooplineError, match=r"cannot open a \.pt without running code in it"):
        yolo_network.finished(str(checkpoint))


def test_a_network_of_another_kind_is_refused(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2), "train_args": {}}, tmp_path / "linear.pt")
    with pytest.raises(LooplineError, match=r"linear\.pt (holds a Linear|cannot be read)"):
        yolo_network.finished(str(tmp_path / "linear.pt"))


def test_a_probability_stays_that_of_its_class(checkpoint, trained):
    shape = detection.ImageInput(height=SIDE, width=SIDE, channels=3)
    body, _ = yolo_network.adopt(str(checkpoint), LABELS, shape, None)
    own, _ = detection._load(trained)
    images = torch.from_numpy(detection.image.batch(list(shapes(4, seed=3).inputs), shape))
    adopted = yolo_network.Detector(body, shape, 8).eval()
    with torch.inference_mode():
        np.testing.assert_allclose(adopted(images)[1].numpy(), own(images)[1].numpy(), atol=0.02)


def test_it_becomes_a_bundle(checkpoint, tmp_path):
    clone = cloned(tmp_path)
    examples, folder = shapes(480, seed=3), tmp_path / "data"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number, (content, boxes) in enumerate(zip(examples.inputs, examples.targets, strict=True)):
        (folder / f"images/{number}.png").write_bytes(content)
        lines = [
            f"{int(label)} {(x1 + x2) / 128} {(y1 + y2) / 128} {(x2 - x1) / 64} {(y2 - y1) / 64}"
            for label, x1, y1, x2, y2 in boxes
        ]
        (folder / f"labels/{number}.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text(
        yaml.safe_dump({"train": "images", "val": "images", "names": list(examples.labels)})
    )
    words = ("--task", "detection", "--data", folder, "--floor", "0.8", "--simple-may-win")
    done = adopt_in(clone, checkpoint, "--name", "shapes", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    made = bundle.read(clone / "models/shapes/bundle")
    assert made.manifest.spec.labels == examples.labels
    written = yaml.safe_load((clone / "params.yaml").read_text())["models"]
    for part in ("export", "quantize", "evaluate"):  # boxes in pixels need the limits that the detector has here
        limits = {"tolerance", "calibration_samples", "resamples"} & written["detector"][part].keys()
        assert limits
        assert all(written["shapes"][part][name] == written["detector"][part][name] for name in limits), part
    assert made.manifest.metrics["metrics"]["map50"]["value"] > 0.8
