"""The output of a dataset reader: one sample as its source holds it, before it is cleaned, split and stored."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RawBox:
    """One box: its class name and its corners in pixels of the upright image, as the annotation states them.

    The corners are edges, not pixel indices: a box that covers a 10 x 8 image is (0, 0, 10, 8).
    `problem` is the reason to set the box aside, None for a usable one. `detail` shows the annotation and its place
    to a person.
    """

    label: str
    x1: float
    y1: float
    x2: float
    y2: float
    problem: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class RawSample:
    """One sample. `path` is relative to the dataset and readable by a person (`train/cat/001.jpg`, `reviews.csv:12`).

    Exactly one of `image` (encoded bytes of any image format) and `text` is set. `label` is the class name of a
    classified sample. `boxes` are the objects of a detection sample, () for an image without objects.
    `split` is the published split ("train", "val" or "test"), None if the dataset publishes none.
    `size` is the (width, height) that the annotation states, None if it states none.
    `problem` says why the sample is unusable (a broken row, an image without annotation), None for a usable one. Cleaning
    counts an unusable sample, whose other fields may be missing. `unused` marks a file that is reported as left out.
    `group` is the cell in the column that `split.group.column` names, None if there is no such column.
    """

    path: str
    image: bytes | None
    text: str | None
    label: str | None
    boxes: tuple[RawBox, ...] | None
    split: str | None
    size: tuple[int, int] | None = None
    problem: str | None = None
    detail: str = ""
    unused: bool = False
    group: str | None = None
