"""Fuzz every format: after any change of a valid dataset, each file is used, counted or named, or one error is raised.

`VALID` holds a small valid dataset of each format; add a line to fuzz another one. The changes follow from a fixed seed.
"""

import gzip
import io
import json
import random
import struct

import numpy as np
import pytest
from PIL import Image

from loopline.data import formats
from loopline.data.clean import clean
from loopline.errors import LooplineError
from loopline.settings import SplitSettings

ROUNDS = 60  # changed datasets of each format
SPLIT = SplitSettings(seed=0, val=0.2, test=0.2)


def picture(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (10, 8), (shade, 40, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def idx(values):
    values = np.asarray(values, np.uint8)
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


PICTURES = {f"images/{name}.png": picture(shade) for shade, name in enumerate("abc")}
COCO = {
    "images": [{"id": n, "file_name": f"{name}.png", "width": 10, "height": 8} for n, name in enumerate("abc")],
    "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 5, 4], "iscrowd": 0} for n in range(3)],
    "categories": [{"id": 1, "name": "cat"}],
}
VOC = (
    "<annotation><filename>{0}.png</filename><size><width>10</width><height>8</height></size><object><name>cat</name>"
    "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object></annotation>"
)
CVAT = (
    '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>'
    '<image id="0" name="a.png" width="10" height="8"><tag label="cat"/>'
    '<box label="cat" xtl="1" ytl="1" xbr="5" ybr="6" rotation="10" outside="0"/></image>'
    '<image id="1" name="b.png" width="10" height="8"><tag label="dog"/>'
    '<polygon label="dog" points="1,1;5,1;3,6"/></image></annotations>'
)
CHOICE = {"type": "choices", "value": {"choices": ["cat"]}}
RECTANGLE = {
    "type": "rectanglelabels",
    "original_width": 10,
    "original_height": 8,
    "value": {"x": 10, "y": 10, "width": 50, "height": 40, "rotation": 5, "rectanglelabels": ["cat"]},
}


def tasks(data, result):
    return json.dumps([{"id": n, "data": entry, "annotations": [{"result": [result]}]} for n, entry in enumerate(data)])


IMAGES = [{"image": f"/data/upload/1/0a1b2c3d-{name}.png"} for name in "abc"]
VALID = {
    ("folders", "classification"): {f"{'ab'[shade % 2]}/{shade}.png": picture(shade) for shade in range(6)},
    ("splits", "classification"): {
        f"{split}/{'ab'[shade]}/{shade}.png": picture(shade + offset)
        for offset, split in ((0, "train"), (2, "test"))
        for shade in range(2)
    },
    ("idx", "classification"): {
        "train-images-idx3-ubyte": idx(np.arange(60).reshape(3, 4, 5)),
        "train-labels-idx1-ubyte": idx([0, 1, 1]),
        "classes.txt": "cat\ndog\n",
    },
    ("idx.gz", "classification"): {
        "train-images-idx3-ubyte.gz": gzip.compress(idx(np.arange(60).reshape(3, 4, 5)), mtime=0),
        "train-labels-idx1-ubyte.gz": gzip.compress(idx([0, 1, 1]), mtime=0),
    },
    ("yolo", "detection"): PICTURES
    | {f"labels/{name}.txt": "0 0.5 0.5 0.4 0.5\n1 0.1 0.1 0.3 0.2 0.2 0.6\n" for name in "abc"}
    | {"data.yaml": "names:\n  0: cat\n  1: dog\ntrain: images\n"},
    ("coco", "detection"): PICTURES | {"instances.json": json.dumps(COCO)},
    ("voc", "detection"): PICTURES
    | {f"Annotations/{name}.xml": VOC.format(name) for name in "abc"}
    | {"ImageSets/Main/train.txt": "a\nb\n"},
    ("cvat", "detection"): PICTURES | {"annotations.xml": CVAT},
    ("cvat tags", "classification"): PICTURES | {"annotations.xml": CVAT},
    ("label studio", "detection"): PICTURES | {"tasks.json": tasks(IMAGES, RECTANGLE)},
    ("label studio choices", "classification"): PICTURES | {"tasks.json": tasks(IMAGES, CHOICE)},
    ("label studio texts", "text"): {"tasks.json": tasks([{"text": "a"}, {"text": "b"}], CHOICE)},
    ("text folders", "text"): {f"{label}/{n}.txt": f"{label} {n}" for label in ("pos", "neg") for n in range(3)},
}
WORDS = (
    b"",
    b"-1",
    b"nan",
    b"1e999",
    b"null",
    b"\xff\xfe",
    b"\x00",
    b"{}",
    b"[]",
    b"true",
    b'"x"',
    b"9" * 400,
    b"\n",
    b"0.7",
)
VALUES = (None, True, -1, float("nan"), 10**400, "x", "\ud800", [], [None], {}, {"x": 1})


def changed_json(data, random_numbers):
    """The JSON with one value replaced or one key left out."""
    try:
        content = json.loads(data)
    except ValueError:  # an earlier change broke it
        return data
    if not isinstance(content, dict | list):
        return data
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return json.dumps(content).encode()
        key = random_numbers.choice(keys)
        inner = place[key]
        if isinstance(inner, dict | list) and random_numbers.random() < 0.85:
            place = inner
            continue
        if random_numbers.random() < 0.3:
            del place[key]
        else:
            place[key] = random_numbers.choice(VALUES)
        return json.dumps(content).encode()


def changed(name, data, random_numbers):
    """The file's content after one random change: cut, bytes replaced, a word replaced, or a JSON value."""
    kind = random_numbers.randrange(5 if name.endswith(".json") else 4)
    at = random_numbers.randrange(len(data) + 1)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes(random_numbers.randrange(256) for _ in range(3)) + data[at + 3 :]
    if kind == 2:
        end = at + random_numbers.randrange(1, 8)
        return data[:at] + random_numbers.choice(WORDS) + data[end:]
    if kind == 3:
        return data + data[at:]
    return changed_json(data, random_numbers)


def change(files, random_numbers):
    """The dataset after one to three changes of files or file names."""
    files = {name: data.encode() if isinstance(data, str) else data for name, data in files.items()}
    for _ in range(random_numbers.randrange(1, 4)):
        name = random_numbers.choice(sorted(files))
        if random_numbers.random() < 0.1:
            files[random_numbers.choice(("x.xml", "README.txt", "notes/1.json", "a.yaml"))] = files.pop(name)
        else:
            files[name] = changed(name, files[name], random_numbers)
    return files


def account(root, task):
    """Read the folder; assert that each sample is kept or set aside, and return (paths of samples, unused files)."""
    samples = list(formats.read(root, task, unused=True))
    cleaned = clean([("set", samples)], task=task, split=SPLIT)
    assert cleaned.seen + cleaned.left_out.total == len(samples)
    assert len(cleaned.samples) + cleaned.aside.total == cleaned.seen
    kept = sum(len(sample.boxes or ()) for sample in cleaned.samples)
    assert kept + cleaned.boxes_aside.total <= cleaned.boxes_seen
    return {s.path for s in samples if not s.unused}, {s.path for s in samples if s.unused}


@pytest.mark.parametrize(("name", "task"), VALID)
def test_a_changed_data_set_is_used_counted_or_refused_in_one_message(tmp_path, name, task):
    for number in range(ROUNDS):
        root = tmp_path / str(number)
        files = change(VALID[name, task], random.Random(f"{name} {number}"))
        for file, data in files.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(data)
        try:
            paths, unused = account(root, task)
        except LooplineError as error:
            assert str(error)
            continue
        images = {file for file in files if file.endswith(".png")}
        counted = {path for path in paths | unused if path in images}
        assert counted == images, f"round {number}"


@pytest.mark.parametrize(("name", "task"), VALID)
def test_the_data_sets_are_valid_before_the_changes(tmp_path, name, task):
    for file, data in VALID[name, task].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(data.encode() if isinstance(data, str) else data)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/notes.xyz").write_text("a file of another kind")
    cleaned = clean([("set", formats.read(tmp_path, task, unused=True))], task=task, split=SPLIT)
    assert cleaned.samples
    assert set(cleaned.aside.counts) <= {"image without annotation"}
    assert list(cleaned.left_out.examples.values()) == [["more/notes.xyz"]]
    assert not cleaned.boxes_aside.counts
