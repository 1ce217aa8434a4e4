"""The pictures of a report. Each function takes numpy arrays and plain values and writes one PNG to `path`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.lib.drawing import BLUE, FAINT, GREEN, GREY, INK, ORANGE, PURPLE, RED, SKY, SOFT, sheet

ACROSS = 8  # pictures in a row
MAX_CAPTION = 11  # characters that fit under a picture
MAX_TEXT = 84  # characters that fit on a line of the table


@dataclass(frozen=True)
class ShownSample:
    """A sample with its answer. sample: the image uint8 (h, w, 1 or 3), or the text. probability: of the predicted class."""

    sample: NDArray[np.uint8] | str
    actual: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Scene:
    """truth (m, 5): class index, corners. predicted (m, 6): class index, corners, score. Corners are in pixels of the image."""

    image: NDArray[np.uint8]
    truth: NDArray[np.float32]
    predicted: NDArray[np.float32]


def learning_curves(path: Path, history: Path) -> None:
    """Draw the columns of `history.csv` (epoch, train_loss, val_loss, ...) over the epochs, losses beside the others."""
    with history.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: [float(row[name] or "nan") for row in rows] for name in rows[0]}
    epochs = columns.pop("epoch")
    losses = {name: values for name, values in columns.items() if name.endswith("loss")}
    others = {name: values for name, values in columns.items() if name not in losses}
    groups = [group for group in (losses, others) if group]
    with sheet(path, 3.6 * len(groups), 2.8, 1, len(groups)) as (_, axes):
        for axis, group in zip(axes, groups, strict=True):
            for (name, values), colour in zip(group.items(), (BLUE, ORANGE, GREEN, PURPLE, RED, SKY), strict=False):
                axis.plot(epochs, values, color=colour, label=name.replace("_", " "), marker="o", markersize=2.5)
            axis.set(xlabel="epoch", title="Loss" if group is losses else "On the validation split")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.legend()


def confusion(path: Path, matrix: NDArray[np.int64], labels: Sequence[str]) -> None:
    """Draw counts (k, k), true classes down and predicted ones across. The shade is the share of the true class."""
    count = len(labels)
    share = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    side = min(8.0, 2.6 + 0.33 * count)
    size = min(9.0, 165 / count)
    with sheet(path, side, side) as (_, (axis,)):
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (row, column), number in np.ndenumerate(matrix):
            if number and size > 4:  # a smaller font is not readable
                colour = "white" if share[row, column] > 0.5 else INK if row == column else RED
                axis.text(column, row, f"{number}", ha="center", va="center", fontsize=size, color=colour)
        ticks = range(count)
        long = max(map(len, labels)) > 3 and count > 3
        axis.set_xticks(ticks, labels, rotation=90 if long else 0, fontsize=min(9, size + 1))
        axis.set_yticks(ticks, labels, fontsize=min(9, size + 1))
        axis.set(xlabel="predicted", ylabel="true", title="Confusion")
        axis.grid(visible=False)
        axis.tick_params(length=0)


def precision_recall(path: Path, curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> None:
    """Draw each class's recall (n,), precision (n,). Of more than six, the three with the least area are coloured, the rest grey."""
    areas = {name: float(np.trapezoid(precision, recall)) for name, (recall, precision) in curves.items()}
    worst = sorted(areas, key=lambda name: areas[name])[: 6 if len(curves) <= 6 else 3]
    colours = dict(zip(worst, (RED, ORANGE, PURPLE, SKY, GREEN, BLUE), strict=False))
    with sheet(path, 4.2, 3.4) as (_, (axis,)):
        for name, (recall, precision) in curves.items():
            if name not in colours:
                axis.plot(recall, precision, color=GREY, linewidth=1)
        if len(curves) > len(worst):
            axis.plot([], [], color=GREY, linewidth=1, label=f"{len(curves) - len(worst)} better ones")
        for name, colour in colours.items():
            axis.plot(*curves[name], color=colour, label=name)
        axis.set(
            xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.03), title="Precision and recall by class"
        )
        axis.legend(loc="lower left")


def reliability(path: Path, bins: Sequence[tuple[float, float, int]]) -> None:
    """Draw accuracy over mean confidence of each bin, and counts below. On the diagonal the confidence is honest."""
    confidence, accuracy, count = (np.array(column, np.float64) for column in zip(*bins, strict=True))
    error = float(np.abs(confidence - accuracy) @ count / count.sum())
    with sheet(path, 3.6, 4.0, 2) as (figure, (upper, lower)):
        upper.get_gridspec().set_height_ratios([3, 1])
        upper.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle="--", label="honest")
        upper.plot(confidence, accuracy, color=BLUE, marker="o", markersize=4, label="model")
        upper.set(ylabel="accuracy", ylim=(0, 1.03), title=f"Reliability (calibration error {error:.3f})")
        upper.legend(loc="upper left")
        lower.bar(confidence, count, width=0.06, color=BLUE)
        lower.set(xlabel="confidence", ylabel="answers", yscale="log", ylim=(0.7, None))
        lower.yaxis.set_major_formatter("{x:,.0f}")
        lower.yaxis.get_major_locator().set_params(numticks=8)
        lower.minorticks_off()
        for axis in (upper, lower):
            axis.set_xlim(0, 1.03)
        figure.align_ylabels()


def class_distribution(path: Path, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Draw class -> split -> samples as stacked bars, in the order of `counts`."""
    with sheet(path, 5.6, 1.1 + 0.2 * max(3, len(counts))) as (figure, (axis,)):
        start = np.zeros(len(counts))
        for split, colour in (("train", BLUE), ("val", ORANGE), ("test", GREEN)):
            width = np.array([row.get(split, 0) for row in counts.values()], np.float64)
            axis.barh(list(counts), width, left=start, color=colour, height=0.75, label=split)
            start += width
        for row, total in enumerate(start):
            axis.text(total, row, f" {total:,.0f}", va="center", fontsize=7.5, color=SOFT)
        axis.grid(visible=False, axis="y")
        axis.tick_params(axis="y", length=0)
        axis.set(xlim=(0, max(1, start.max()) * 1.1), ylim=(len(counts) - 0.4, -0.6))
        figure.legend(loc="outside upper left", ncols=3, alignment="left").set_title(
            "Class distribution", {"weight": "bold"}
        )


def examples(path: Path, right: Sequence[ShownSample], wrong: Sequence[ShownSample]) -> None:
    """Draw a row of images that were classified right, then those that were not, in their order."""
    rows = 1 + -(-min(len(wrong), 2 * ACROSS) // ACROSS)
    with sheet(path, 0.95 * ACROSS, 1.2 * rows + 0.4, rows, ACROSS) as (figure, axes):
        for axis in axes:
            axis.axis("off")
        for axis, answer in zip(axes, right[:ACROSS], strict=False):
            _picture(axis, answer.sample)
            axis.set_title(f"{_cut(answer.actual, MAX_CAPTION)}\n{answer.probability:.0%}", **_caption(GREEN))
        for axis, answer in zip(axes[ACROSS:], wrong, strict=False):
            _picture(axis, answer.sample)
            words = (
                f"{_cut(answer.predicted, MAX_CAPTION)} {answer.probability:.0%}\nis {_cut(answer.actual, MAX_CAPTION)}"
            )
            axis.set_title(words, **_caption(RED))
        title = "Right in the first row, then the most confident mistakes" if wrong else "Right; there is no mistake"
        figure.suptitle(title, x=0.01, ha="left")


def detections(path: Path, scenes: Sequence[Scene], labels: Sequence[str]) -> None:
    """Draw up to six images, with true boxes dashed and predicted ones solid, with class and score."""
    from matplotlib.lines import Line2D

    columns = min(3, len(scenes))
    rows = -(-min(6, len(scenes)) // columns)
    aspect = max(scene.image.shape[0] / scene.image.shape[1] for scene in scenes[:6])
    with sheet(path, 2.3 * columns, 2.3 * aspect * rows + 0.4, rows, columns) as (figure, axes):
        for axis in axes:
            axis.axis("off")
        for axis, scene in zip(axes, scenes, strict=False):
            _scene(axis, scene, labels)
        lines = [Line2D([], [], color=GREEN, linestyle="--", label="true"), Line2D([], [], color=ORANGE, label="found")]
        figure.legend(handles=lines, loc="outside lower center", ncols=2)


def text_examples(path: Path, right: Sequence[ShownSample], wrong: Sequence[ShownSample]) -> None:
    """Draw a table of texts that were classified right, then of those that were not, in their order."""
    lines: list[tuple[str, str, str, str, str]] = []
    for title, answers, colour in (("Right", right, GREEN), ("Wrong, the most confident first", wrong, RED)):
        lines.append((title, "predicted", "", "true", INK))
        for answer in answers:
            text = _cut(" ".join(str(answer.sample).split()), MAX_TEXT)
            lines.append(
                (text, _cut(answer.predicted, 18), f"{answer.probability:.0%}", _cut(answer.actual, 18), colour)
            )
    with sheet(path, 8.4, 0.24 * len(lines) + 0.1) as (_, (axis,)):
        axis.set(xlim=(0, 1), ylim=(len(lines), 0))
        axis.axis("off")
        for row, (text, predicted, share, actual, colour) in enumerate(lines):
            heading = colour == INK
            weight = "bold" if heading else "normal"
            if not heading:
                axis.axhline(row, color=FAINT, linewidth=0.8)
            cells = (
                (0.0, text, INK, "left"),
                (0.62, predicted, colour, "left"),
                (0.83, share, SOFT, "right"),
                (0.85, actual, INK, "left"),
            )
            for x, words, shade, side in cells:
                axis.text(x, row + 0.5, words, color=shade, ha=side, va="center", fontsize=8, weight=weight)


def _picture(axis: Any, image: Any, **options: Any) -> None:
    grey = image.ndim == 2 or image.shape[2] == 1
    look = {"cmap": "gray", "vmin": 0, "vmax": 255} if grey else {}
    small = max(image.shape[:2]) <= 64
    axis.imshow(
        image.reshape(image.shape[:2]) if grey else image,
        interpolation="nearest" if small else "antialiased",
        **look,
        **options,
    )


def _scene(axis: Any, scene: Scene, labels: Sequence[str]) -> None:
    height, width = scene.image.shape[:2]
    _picture(axis, scene.image, extent=(0, width, height, 0))
    for _, *corners in scene.truth:
        _box(axis, corners, color=GREEN, linestyle="--")
    crowded = len(scene.predicted) > 12
    tag = {"facecolor": ORANGE, "edgecolor": "none", "pad": 0.6}
    for index, *corners, score in scene.predicted:
        _box(axis, corners, color=ORANGE)
        words = labels[int(index)] + ("" if crowded else f" {score:.2f}".replace(" 0.", " ."))
        x, y = max(0, corners[0]), max(0, corners[1])
        look = {"fontsize": 4.5 if crowded else 6, "va": "bottom" if y > height / 15 else "top", "color": "black"}
        text = axis.text(x, y, words, bbox=tag, clip_on=True, **look)
        text.set_in_layout(False)  # a tag at an edge must not shrink its image
    axis.set(xlim=(0, width), ylim=(height, 0))


def _box(axis: Any, corners: Sequence[float], **look: Any) -> None:
    x1, y1, x2, y2 = corners
    axis.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], linewidth=1.3, **look)


def _caption(colour: str) -> dict[str, Any]:
    return {"fontsize": 6.5, "color": colour, "weight": "normal", "loc": "center", "pad": 2}


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
