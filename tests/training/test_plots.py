"""Each picture is drawn, is small, and has the same bytes for the same input. (Their look was judged by eye.)"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loopline.lib.drawing import MAX_BYTES
from loopline.training import plots
from loopline.training.plots import Scene, ShownSample

Draw = Callable[[Path], None]
RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (6, 480, 640, 3), np.uint8)  # nothing is larger as a PNG
LANGUAGES = [f"language {number}" for number in range(25)]
RECALL = np.linspace(0.01, 1, 50)


def history(path: Path) -> Path:
    path.write_text("epoch,train_loss,val_loss,accuracy\n1,2.0,1.9,0.3\n2,1.0,1.2,\n3,0.5,nan,0.9\n", encoding="utf-8")
    return path


def answers(count: int, side: int = 28, channels: int = 1) -> list[ShownSample]:
    images = RANDOM.integers(0, 256, (count, side, side, channels), np.uint8)
    return [ShownSample(image, "Ankle boot", "A name that is far too long to be shown", 0.987) for image in images]


def texts(count: int) -> list[ShownSample]:
    return [
        ShownSample(f"costs $5 and ${n}\x0b\u65e5\u672c " + "long " * n, "English", "Basque", 0.5) for n in range(count)
    ]


def scenes(count: int, boxes: int) -> list[Scene]:
    corners = np.array([[1, 10, 0, 90.5, 60], [0, -5, 400, 700, 500]] * boxes, np.float32)
    return [
        Scene(image, corners, np.column_stack([corners, np.full(len(corners), 0.9, np.float32)]))
        for image in NOISE[:count]
    ]


DRAWN: dict[str, Draw] = {
    "learning_curves": lambda path: plots.learning_curves(path, history(path.with_suffix(".csv"))),
    "confusion of 3": lambda path: plots.confusion(path, np.diag([5, 0, 2]) + 1, ["a", "b", "c"]),
    "confusion of 25": lambda path: plots.confusion(path, np.ones((25, 25), np.int64) * 100, LANGUAGES),
    "confusion of 100": lambda path: plots.confusion(path, np.ones((100, 100), np.int64), LANGUAGES * 4),
    "precision_recall of 2": lambda path: plots.precision_recall(
        path, {"cat": (RECALL, 1 - RECALL**4), "none": (RECALL[:0], RECALL[:0])}
    ),
    "precision_recall of 25": lambda path: plots.precision_recall(
        path, {name: (RECALL, 1 - RECALL ** (n + 1)) for n, name in enumerate(LANGUAGES)}
    ),
    "reliability": lambda path: plots.reliability(path, [(0.3, 0.2, 2), (0.95, 0.97, 1500)]),
    "reliability of one bin": lambda path: plots.reliability(path, [(1.0, 1.0, 7)]),
    "class_distribution": lambda path: plots.class_distribution(
        path, {"cat": {"train": 900, "val": 0, "test": 80}, "dog & $cow$": {"train": 3}}
    ),
    "examples": lambda path: plots.examples(path, answers(8), answers(40, 200, 3)),
    "examples without mistakes": lambda path: plots.examples(path, answers(3), []),
    "detections": lambda path: plots.detections(path, scenes(6, 1), ["cat", "dog"]),
    "detections, crowded": lambda path: plots.detections(path, scenes(1, 20), ["cat", "dog"]),
    "detections, nothing found": lambda path: plots.detections(
        path, [Scene(NOISE[0], np.zeros((0, 5), np.float32), np.zeros((0, 6), np.float32))], ["cat"]
    ),
    "text_examples": lambda path: plots.text_examples(path, texts(8), texts(12)),
    "text_examples without mistakes": lambda path: plots.text_examples(path, texts(1), []),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_small_and_no_other_file_is_left(tmp_path: Path, name: str) -> None:
    path = tmp_path / "pictures" / "one.png"
    path.parent.mkdir()

    DRAWN[name](path)

    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert len(set(np.asarray(image.convert("L")).ravel().tolist())) > 5, "an empty sheet"
        assert not image.info.keys() & {"Software", "Date", "Creation Time"}
    assert path.stat().st_size <= MAX_BYTES
    assert not list(path.parent.glob("*.partial"))


def test_the_same_input_gives_the_same_bytes_whatever_the_users_style(tmp_path: Path) -> None:
    import matplotlib as mpl

    def draw(path: Path) -> bytes:
        plots.reliability(path, [(0.3, 0.2, 2), (0.95, 0.97, 1500)])
        return path.read_bytes()

    first = draw(tmp_path / "first.png")
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 30, "font.family": "serif"}):
        second = draw(tmp_path / "second.png")

    assert first == second


def test_other_data_gives_another_picture(tmp_path: Path) -> None:
    for number in (1, 2):
        plots.confusion(tmp_path / f"{number}.png", np.eye(3, dtype=np.int64) * number, ["a", "b", "c"])

    assert (tmp_path / "1.png").read_bytes() != (tmp_path / "2.png").read_bytes()
