"""Counting classes before and after a batch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from PIL import Image

from loopline.data import distribution
from loopline.data.manifest import Box, Sample


def test_samples_are_counted_by_label_and_images_by_their_boxes() -> None:
    texts = [Sample(id="1", source="s", path="p", split="train", label=label, text="t") for label in "aab"]
    assert distribution.count(texts) == {"a": 2, "b": 1}
    boxes = (Box("cat", 0, 0, 1, 1), Box("cat", 1, 1, 2, 2), Box("dog", 0, 0, 1, 1))
    image = Sample(id="1", source="s", path="p", split="train", image=b"", boxes=boxes)
    nothing = Sample(id="2", source="s", path="p", split="train", image=b"", boxes=())
    assert distribution.count([image, nothing]) == {"cat": 2, "dog": 1}


def test_the_table_has_one_line_per_class_in_natural_order() -> None:
    assert distribution.table(Counter({"2": 30, "10": 10}), Counter({"2": 30, "10": 20, "new": 10})).splitlines() == [
        "CLASS  BEFORE  NEW  AFTER  SHARE BEFORE  SHARE AFTER",
        "2          30   +0     30         75.0%        50.0%",
        "10         10  +10     20         25.0%        33.3%",
        "new         0  +10     10          0.0%        16.7%",
    ]


def test_the_picture_stays_readable_with_many_classes(tmp_path: Path) -> None:
    after = Counter({f"class {number}": number + 1 for number in range(500)})
    distribution.draw(tmp_path / "new" / "classes.png", Counter(), after, title="many")
    with Image.open(tmp_path / "new" / "classes.png") as picture:
        assert picture.format == "PNG"
        assert picture.height < 2500
    assert not list(tmp_path.rglob("*.partial"))
