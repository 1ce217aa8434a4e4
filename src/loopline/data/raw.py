"""What a dataset reader yields: one sample as it stands in its source, before anything is cleaned, split or stored."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RawBox:
    """One box: its class name and its corners in pixels of the upright image, as the annotation gives them.

    The corners are edges, not pixel indices: a box over the whole of a 10 x 8 image is (0, 0, 10, 8).
    `problem` is the reason why the reader could not use the annotation, or why it asks to be left out; `detail` shows
    the annotation to a person, with its place.
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
    """One sample; `path` is relative to the dataset and readable by a person (`train/cat/001.jpg`, `reviews.csv:12`).

    Exactly one of `image` (encoded bytes of any image format) and `text` is set. `label` is the class name of a
    classified sample; `boxes` are the objects of a detection sample, () for an image with none.
    `split` is the published one, "train", "val" or "test", or None where the dataset publishes none.
    `size` is the (width, height) that the annotation states, if it does.
    `problem` is set where the reader found no whole sample (a broken row, an image without annotation); then the rest
    may be missing. Cleaning counts it. `unused` marks a file that is not a sample: it is named as left out.
    `group` is the cell of the column that `split.group.column` names, None where there is no such column.
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
