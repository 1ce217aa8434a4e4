"""Parse the lines of YOLO's label files. The number of columns distinguishes boxes, outlines and poses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from loopline.data.formats.common import Folder, lines
from loopline.data.raw import RawBox
from loopline.errors import LooplineError

BOX = 5  # columns of a box: class x y width height
_OUTLINE = 7  # columns of the smallest outline: a class and three points
_FAR = 2.0  # fractions of the image; larger coordinates must be pixels
# Fractions of the image by which a pose point may lie outside its box, and an outline point outside the image.
_SLACK = 0.01


def is_labels(text: list[str]) -> bool:
    """Whether the first line that is not empty is a YOLO label: at least five numbers."""
    words = next((line.split() for line in text if line.strip()), [])
    values = _numbers(words)
    return values is not None and len(values) >= BOX


@dataclass
class Columns:
    """What the lines of a dataset hold besides boxes: pose points, or outlines.

    points: `kpt_shape` (points, values per point); None if data.yaml does not state it, (0, 0) if it states that there are none.
    """

    points: tuple[int, int] | None
    counts: set[int] = field(default_factory=set)
    outlines: int = 0  # lines that can only be outlines
    triangles: bool = False  # whether a line of 7 columns ends in no whole number, so in no track number
    tracks: bool = False  # whether a line of 7 columns ends in a whole number
    example: str = ""

    @property
    def of_pose(self) -> int | None:
        """The number of columns of a line with pose points, None if there are none."""
        return BOX + self.points[0] * self.points[1] if self.points and self.points[0] else None

    @property
    def of_track(self) -> int | None:
        """The number of columns of a box with confidence and track number, None if such lines are outlines of three points."""
        return _OUTLINE if self.tracks and not self.triangles else None

    def look_at(self, folder: Folder, name: str) -> None:
        """Record the kinds of lines in one label file."""
        if self.points is not None:
            return
        try:
            text = lines((folder.root / name).read_bytes())
        except OSError:
            return
        for number, line in enumerate(text, 1):
            values = _numbers(line.split())
            if values is not None and len(values) >= _OUTLINE and len(values) % 2:
                if len(values) == _OUTLINE and values[-1] % 1 == 0:
                    self.tracks = True
                    continue
                self.triangles |= len(values) == _OUTLINE
                self.counts.add(len(values))
                self.outlines += not _could_be_pose(values[1:])
                self.example = self.example or f"{name}:{number}"

    def check(self, folder: Folder) -> None:
        """Raise LooplineError if all longer lines could be either poses or outlines."""
        if len(self.counts) == 1 and not self.outlines:
            raise LooplineError(
                f"{folder.root / self.example}: all longer lines have {self.counts.pop()} columns, which may be a box "
                "with pose points, or an outline. Write kpt_shape into data.yaml: [number of points, 2 or 3] for poses, "
                "[0, 0] for outlines."
            )


def _could_be_pose(values: list[float]) -> bool:
    """Whether the numbers after the class can be a box in the image with points inside it, or at (0, 0)."""
    x, y, across, down = values[:4]
    if not (0 < across <= 1 and 0 < down <= 1):
        return False
    left, top, right, bottom = x - across / 2, y - down / 2, x + across / 2, y + down / 2
    if min(left, top) < -_SLACK or max(right, bottom) > 1 + _SLACK:
        return False

    def inside(point: list[float]) -> bool:
        return point[:2] == [0, 0] or (
            left - _SLACK <= point[0] <= right + _SLACK and top - _SLACK <= point[1] <= bottom + _SLACK
        )

    rest = values[4:]
    return any(
        len(rest) % size == 0 and all(inside(rest[at : at + size]) for at in range(0, len(rest), size))
        for size in (2, 3)
    )


def parse(line: str, where: str, size: tuple[int, int], names: dict[int, str], columns: Columns) -> RawBox:
    """The box of one line. where: the line's place, for the report. size: width and height of the image in pixels."""
    words = line.split()
    shown = f"{where}: {line.strip():.80}"
    values = _numbers(words)
    if values is None or not all(map(math.isfinite, values)):
        return _broken(shown, "not every column is a number")
    index = int(values[0])
    if index != values[0] or index < 0:
        return _broken(shown, "the class is not a whole number")
    low, high = -_FAR, _FAR
    if len(words) in (BOX, columns.of_pose):
        x, y, across, down = values[1:BOX]
        corners = (x - across / 2, y - down / 2, x + across / 2, y + down / 2)
    elif len(words) >= _OUTLINE and len(words) % 2 and not columns.of_pose and len(words) != columns.of_track:
        corners = (min(values[1::2]), min(values[2::2]), max(values[1::2]), max(values[2::2]))
        low, high = -_SLACK, 1 + _SLACK
    else:
        return _broken(shown, _count_problem(len(words), columns))
    problem = None
    if names and index not in names:
        problem = "class number without a name"
    elif any(not low <= value <= high for value in corners):
        problem = "coordinates that are not fractions of the image"
    width, height = size
    x1, y1, x2, y2 = corners
    label, detail = names.get(index, str(index)), shown if problem else ""
    return RawBox(label, x1 * width, y1 * height, x2 * width, y2 * height, problem=problem, detail=detail)


def _broken(shown: str, why: str) -> RawBox:
    return RawBox("", 0, 0, 0, 0, problem="broken label line", detail=f"{shown}: {why}")


def _count_problem(count: int, columns: Columns) -> str:
    if count < BOX:
        return f"{count} columns, a box has {BOX}"
    if columns.of_pose:
        return f"{count} columns, a box has {BOX}, a pose of this kpt_shape {columns.of_pose}"
    if count == columns.of_track:
        return f"{count} columns, a box has {BOX}; a confidence and a track number belong to a prediction"
    if count == BOX + 1:
        return f"{count} columns, a box has {BOX}; a confidence belongs to a prediction, not to a label"
    return f"{count} columns, a box has {BOX}, an outline an odd number, and a pose needs kpt_shape in data.yaml"


def _numbers(words: list[str]) -> list[float] | None:
    try:
        return [float(word) for word in words]
    except ValueError:
        return None
