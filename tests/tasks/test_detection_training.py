"""The detector from encoded images to ONNX."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from loopline.errors import LooplineError
from loopline.lib import sessions
from loopline.stages import quantize
from loopline.tasks import bootstrap
from loopline.tasks.detection import fit, suppression, task, yolo_network
from loopline.tasks.detection import training as detection
from loopline.tasks.detection.mosaic import Scenes
from loopline.tasks.detection.parameters import DetectionSettings
from loopline.tasks.spec import ImageInput, ModelSpec
from loopline.training import onnx_export, parity, quantization

sys.path.insert(0, str(Path(__file__).parent))
from naive import one_tensor
from shapes import LABELS, SIDE, SMALL, shapes, small


def run(folder: Path, model: DetectionSettings, log: Any = lambda *_: None) -> Path:
    detection.train(
        shapes(48, seed=0), shapes(16, seed=1), model, seed=0, out=folder / "train", work=folder / "work", log=log
    )
    return folder / "train"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("detector"), small())


@pytest.fixture(scope="module")
def exported(trained: Path) -> tuple[Path, ModelSpec]:
    out = trained.parent / "model.onnx"
    return out, detection.export(trained, shapes(48, seed=0), shapes(16, seed=1), small(), out=out)


def map50(path: Path, spec: ModelSpec, side: int = SIDE) -> float:
    test = shapes(16, seed=2, side=side)
    return task.TASK.scorer(sessions.run(path, task.TASK.preprocessor(spec, path)(test.inputs)), test, spec)(None)[
        "map50"
    ]  # type: ignore[arg-type]


def test_training_learns_and_leaves_its_files_but_no_checkpoint(trained: Path) -> None:
    assert sorted(path.name for path in trained.iterdir()) == ["config.json", "history.csv", "model.safetensors"]
    assert not list((trained.parent / "work").iterdir())
    header, *rows = (trained / "history.csv").read_text().splitlines()
    assert header == "epoch,train_loss,val_loss,map50,map50_95"
    assert len(rows) == small().train.epochs
    assert float(rows[-1].split(",")[3]) > 0.9
    assert str(Path.cwd()) not in (trained / "config.json").read_text()


def test_a_killed_training_resumes_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    program = f"""
import os, signal, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
import pathlib, test_detection_training as t
def log(epoch, metrics):
    if epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
t.run(pathlib.Path({str(tmp_path / "killed")!r}), t.small(epochs=3), log)
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False, cwd=Path.cwd(), env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/train").exists()
    seen: list[int] = []
    resumed = run(tmp_path / "killed", small(epochs=3), lambda epoch, _: seen.append(epoch))
    uninterrupted = run(tmp_path / "whole", small(epochs=3))
    assert seen == [1, 2, 3]
    for name in ("model.safetensors", "history.csv", "config.json"):
        assert (resumed / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_torch_and_onnx_agree_for_any_batch(trained: Path, exported: tuple[Path, ModelSpec]) -> None:
    path, spec = exported
    inputs = task.TASK.preprocessor(spec, trained)(shapes(5, seed=3).inputs)  # type: ignore[arg-type]
    expected = detection.reference(trained)(inputs)
    for size in (1, 2, 5):
        differences = parity.largest_difference(expected, sessions.run(path, inputs, batch=size))
        assert max(differences.values()) < 1e-3, differences


def test_the_parity_check_notices_swapped_channels(trained: Path, exported: tuple[Path, ModelSpec]) -> None:
    path, spec = exported
    inputs = task.TASK.preprocessor(spec, trained)(shapes(5, seed=3).inputs)  # type: ignore[arg-type]
    swapped = {"image": inputs["image"][..., ::-1].copy()}
    with pytest.raises(LooplineError, match="channel order"):
        parity.check(detection.reference(trained)(inputs), sessions.run(path, swapped), tolerance=1e-3, what="they")


def test_the_graph_is_accurate_and_its_specification_is_right(exported: tuple[Path, ModelSpec]) -> None:
    path, spec = exported
    assert spec.labels == LABELS
    assert spec.image == ImageInput(height=SIDE, width=SIDE, channels=3, fit="letterbox")
    assert 0 < spec.score_threshold < 1
    assert map50(path, spec) > 0.9
    assert [output.name for output in onnx.load(path).graph.output] == ["boxes", "scores", "classes", "embedding"]


def strings(message: Any) -> Iterator[str]:
    """Yield every name, doc string and metadata entry of a graph, but not weights: any three bytes may be in them by chance."""
    for field, value in message.ListFields():
        if field.name == "raw_data":
            continue
        alone = isinstance(value, str | bytes | int | float) or hasattr(value, "ListFields")
        for item in [value] if alone else value:
            if hasattr(item, "ListFields"):
                yield from strings(item)
            elif isinstance(item, str | bytes):
                yield item if isinstance(item, str) else item.decode("utf-8", "replace")


def test_the_file_holds_no_source_path(exported: tuple[Path, ModelSpec], tmp_path: Path) -> None:
    exported_model = onnx_export.to_onnx(torch.nn.Linear(2, 2), torch.zeros(2, 2), takes="x", gives=("y",))
    assert any(".py" in text for text in strings(exported_model))
    onnx_export.save(exported_model, tmp_path / "told.onnx")
    assert not [text for text in strings(onnx.load(tmp_path / "told.onnx")) if ".py" in text]
    assert not [text for text in strings(onnx.load(exported[0])) if ".py" in text]


def test_weights_that_look_like_a_path_are_not_mistaken_for_one() -> None:
    weights = numpy_helper.from_array(np.frombuffer(b"/a/b.py/", np.uint8), "w")
    graph = helper.make_graph([], "g", [], [], [weights])
    assert b".py" in helper.make_model(graph).SerializeToString()
    assert not [text for text in strings(helper.make_model(graph)) if ".py" in text]


def test_the_embedding_has_unit_variance_on_the_training_images(exported: tuple[Path, ModelSpec]) -> None:
    path, spec = exported
    embedding = sessions.run(path, task.TASK.preprocessor(spec, path)(shapes(48, seed=0).inputs))["embedding"]  # type: ignore[arg-type]
    assert embedding.mean(0) == pytest.approx(np.zeros(8), abs=0.01)
    assert embedding.std(0) == pytest.approx(np.ones(8), abs=0.01)


def quantized(path: Path, target: Path, spec: ModelSpec, *, side: int, naively: bool) -> Path:
    images = task.TASK.preprocessor(spec, path)(shapes(8, seed=0, side=side).inputs)  # type: ignore[arg-type]
    exclude = [] if naively else detection.nodes_to_exclude(onnx.load(path))
    quantization.quantize(path, target, quantization.grid("static", ("minmax",))[0], images, exclude=exclude)
    return target


def test_int8_is_as_accurate_as_fp32(exported: tuple[Path, ModelSpec], tmp_path: Path) -> None:
    path, spec = exported
    int8 = quantized(path, tmp_path / "int8.onnx", spec, side=SIDE, naively=False)
    assert map50(int8, spec) == pytest.approx(map50(path, spec), abs=0.03)
    kinds = [node.op_type for node in onnx.load(int8).graph.node]
    assert kinds.count("QuantizeLinear") >= kinds.count("Conv")


def test_a_naively_quantized_detector_loses_every_box_without_an_error_and_is_refused(
    trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "train")
    config = json.loads((trained / "config.json").read_text())
    config["image"] |= {"height": 512, "width": 512}  # the network is convolutional: it runs at any size
    (tmp_path / "train/config.json").write_text(json.dumps(config))
    data = shapes(8, seed=2, side=512)
    spec = detection.export(tmp_path / "train", data, data, small(), out=tmp_path / "model.onnx")
    joined = one_tensor(tmp_path / "model.onnx", tmp_path / "joined.onnx", labels=2)
    assert map50(joined, spec, side=512) > 0.9
    careful = quantized(joined, tmp_path / "careful.onnx", spec, side=512, naively=False)
    assert map50(careful, spec, side=512) > 0.9
    naive = quantized(joined, tmp_path / "naive.onnx", spec, side=512, naively=True)
    assert map50(naive, spec, side=512) == 0

    test = shapes(16, seed=2, side=512)
    inputs = task.TASK.preprocessor(spec, tmp_path)(test.inputs)  # type: ignore[arg-type]
    full, small_ = sessions.run(joined, inputs), sessions.run(naive, inputs)
    change = bootstrap.paired(
        task.TASK.scorer(small_, test, spec),
        task.TASK.scorer(full, test, spec),
        16,
        metric=task.TASK.headline,
        resamples=200,
        seed=0,
    )
    gap, sizes, fast = quantization.distance(full, small_), {"fp32": 2, "int8": 1}, bootstrap.Interval(2.0, 2.0, 2.0)
    refused = quantize.objections(change, gap, sizes, fast, task.TASK.headline, small().quantize)
    assert any("map50 may fall" in reason for reason in refused), "FP32 must ship"


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_training_starts_from_the_weights_of_an_earlier_training(trained: Path, tmp_path: Path, suffix: str) -> None:
    weights = trained / "model.safetensors"
    if suffix == "pt":  # as ultralytics saves it
        network, _ = detection._load(trained)
        weights = tmp_path / "model.pt"
        network.network.args, network.network.criterion = {}, None  # as its trainer leaves them
        torch.save({"model": network.network}, weights)
    fresh = run(tmp_path / "fresh", small(epochs=1, learning_rate=1e-6))
    warm = run(tmp_path / "warm", small(epochs=1, learning_rate=1e-6, pretrained=str(weights)))
    scores = [float((out / "history.csv").read_text().splitlines()[-1].split(",")[3]) for out in (fresh, warm)]
    assert scores[0] < 0.1
    assert scores[1] > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "yolo99n.yaml"}, "there is no 'yolo99n.yaml'"),
        ({"architecture": "https://example.com/a.yaml"}, "there is no"),
        ({"architecture": "yolo11n-seg.yaml"}, "its last layer is Segment"),
        ({"pretrained": "nowhere.pt"}, "there is no file 'nowhere.pt'"),
    ],
)
def test_a_wrong_setting_is_named(change: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(LooplineError, match=message):
        run(tmp_path, small(**change))


def test_an_image_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(LooplineError, match="multiples of 16"):
        yolo_network.build(yolo_network.architecture(SMALL), 2, ImageInput(height=60, width=64, channels=3))


def test_published_architectures_are_read_and_hold_no_path() -> None:
    layers = yolo_network.architecture("yolo11n.yaml")
    assert layers["scale"] == "n"
    assert "yaml_file" not in layers


def suppression_graph(path: Path, classes: int, iou: float, most: int) -> Path:
    values = [("all_boxes", ["n", 30, 4]), ("all_scores", ["n", classes, 30]), ("all_embedding", ["n", 2])]
    inputs = [helper.make_tensor_value_info(f"{name}_in", TensorProto.FLOAT, shape) for name, shape in values]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values]
    nodes = [helper.make_node("Identity", [f"{name}_in"], [name]) for name, _ in values]
    body = helper.make_graph(nodes, "g", inputs, outputs)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(suppression.append(model, iou=iou, most=most), path)
    return path


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([0.3, 0.6]), st.floats(0, 1), st.sampled_from([20, 40])
)
def test_suppression_in_the_graph_and_in_numpy_agree(
    tmp_path_factory: pytest.TempPathFactory, seed: int, classes: int, iou: float, sparse: float, most: int
) -> None:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 40, (3, 30, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 30, (3, 30, 2))], 2).astype(np.float32)
    scores = (random.random((3, classes, 30)) * (random.random((3, classes, 30)) > sparse)).astype(np.float32)
    scores[1] = 0  # an image without a box
    path = suppression_graph(tmp_path_factory.mktemp("graph") / "model.onnx", classes, iou, most)
    embedding = np.zeros((3, 2), np.float32)
    inputs = {"all_boxes_in": boxes, "all_scores_in": scores, "all_embedding_in": embedding}
    outputs, expected = sessions.run(path, inputs), suppression.suppress(boxes, scores, iou=iou, most=most)
    for name, value in expected.items():
        assert np.array_equal(outputs[name], value), name


def test_suppression_drops_a_worse_box_of_the_same_class_only() -> None:
    boxes = np.array([[[0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40]]], np.float32)
    scores = np.array([[[0.9, 0.8, 0.001], [0.2, 0.6, 0.5]]], np.float32)
    outputs = suppression.suppress(boxes, scores, iou=0.5, most=4)
    assert outputs["scores"][0].tolist() == pytest.approx([0.9, 0.6, 0.5, 0])
    assert outputs["classes"][0].tolist() == [0, 1, 1, 0]


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.booleans())
def test_boxes_move_with_their_pixels(seed: int, horizontal: bool, vertical: bool, mosaic: bool) -> None:
    random = np.random.default_rng(seed)
    pixels, boxes = np.zeros((4, 48, 64, 3), np.uint8), []
    for image in pixels:
        (x, y), (w, h) = random.integers(4, 30, 2), random.integers(8, 16, 2)
        image[y : y + h, x : x + w] = 255
        boxes.append(np.array([[1, x, y, x + w, y + h]], np.float32))
    recipe = small(
        mosaic=1.0, flip_horizontal=float(horizontal), flip_vertical=float(vertical), scale=0.4, shift=0.3
    ).train
    image, (*moved,) = Scenes(pixels, boxes, 0).augmented(0, recipe, random, mosaic=mosaic)
    bright = image.max(2) > 90
    assert image.shape == (48, 64, 3)
    inside = np.zeros_like(bright)
    for label, x1, y1, x2, y2 in moved:
        assert label == 1
        assert 0 <= x1 < x2 <= 64
        assert 0 <= y1 < y2 <= 48
        rows, columns = slice(round(y1), round(y2)), slice(round(x1), round(x2))
        inside[rows, columns] = True
        assert bright[rows, columns].mean() > 0.7  # a box is full of its object
    assert (bright & ~inside).sum() <= 40 + 60 * (len(moved) < 4)  # and objects are in boxes, but for rims and slivers


def test_the_learning_rate_rises_straight_and_falls_to_its_share() -> None:
    recipe = small(epochs=10, warmup_epochs=2, learning_rate=0.01, final_learning_rate=0.1).train
    assert fit.learning_rate(0, recipe) == 0
    assert fit.learning_rate(1, recipe) == pytest.approx(0.005)
    assert fit.learning_rate(2, recipe) == pytest.approx(0.01)
    assert fit.learning_rate(10, recipe) == pytest.approx(0.001)


def test_a_training_with_class_weights_writes_its_model(tmp_path: Path) -> None:
    assert (run(tmp_path, small(epochs=1, class_weights=True)) / "model.safetensors").exists()
