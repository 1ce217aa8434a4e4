"""Each layout that docs/bring-your-own-data.md promises is read from generated files."""

import gzip
import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from loopline.data import formats
from loopline.data.formats import common, png
from loopline.data.formats.recognise import recognise
from loopline.errors import LooplineError
from loopline.tasks.image import decode


def picture(width=10, height=8, *, shade=0, form="PNG", **options):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 40, 90)).save(buffer, form, **options)
    return buffer.getvalue()


def put(root, *, files):
    """Write the files, {name: content}."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def texts(folder):
    return [(s.text, s.label, s.split) for s in formats.read(folder, "text")]


def boxes(folder):
    """{path: [(label, x1, y1, x2, y2), ...]} of the usable samples."""
    return {
        s.path: [(b.label, b.x1, b.y1, b.x2, b.y2) for b in s.boxes]
        for s in formats.read(folder, "detection")
        if not s.problem
    }


def problems(folder, task):
    return {s.path: s.problem for s in formats.read(folder, task) if s.problem}


# Folders of classes


def test_a_folder_per_class_gives_labels(tmp_path):
    put(
        tmp_path,
        files={"cat/2.JPG": picture(form="JPEG"), "cat/10.jpg": picture(shade=1), "dog/x.png": picture(shade=2)},
    )
    samples = list(formats.read(tmp_path, "classification"))
    assert [(s.path, s.label, s.split) for s in samples] == [
        ("cat/2.JPG", "cat", None),
        ("cat/10.jpg", "cat", None),
        ("dog/x.png", "dog", None),
    ]
    assert samples[2].image == picture(shade=2)


def test_folders_named_like_splits_above_the_classes_are_splits(tmp_path):
    put(tmp_path, files={f"{split}/{name}/1.png": picture() for split in ("train", "valid", "test") for name in "ab"})
    assert {(s.path, s.label, s.split) for s in formats.read(tmp_path, "classification")} == {
        (f"{folder}/{name}/1.png", name, split)
        for folder, split in (("train", "train"), ("valid", "val"), ("test", "test"))
        for name in "ab"
    }


def test_a_class_may_be_named_like_a_split(tmp_path):
    put(tmp_path, files={"train/1.png": picture(), "bus/1.png": picture(), "bus/rear/2.png": picture()})
    assert {(s.label, s.split) for s in formats.read(tmp_path, "classification")} == {("train", None), ("bus", None)}


def test_files_outside_of_a_class_are_reported_and_readmes_are_not(tmp_path):
    stray = {"loose.png": picture(), "README.md": "", "LICENSE": "", ".DS_Store": "", "a/Thumbs.db": "", "v2.dvc": ""}
    put(tmp_path, files={"a/1.png": picture(), "b/1.png": picture(), **stray})
    assert problems(tmp_path, "classification") == {"loose.png": "not inside a class folder"}


def test_links_are_followed_once_and_those_to_nowhere_are_reported(tmp_path):
    put(tmp_path, files={"elsewhere/1.png": picture(), "set/a/1.png": picture()})
    (tmp_path / "set/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/round").symlink_to(tmp_path / "set")
    (tmp_path / "set/a/2.png").symlink_to(tmp_path / "nowhere.png")
    assert [s.path for s in formats.read(tmp_path / "set", "classification")] == ["a/1.png", "a/2.png", "b/1.png"]
    assert problems(tmp_path / "set", "classification") == {"a/2.png": "file that cannot be opened"}


def test_a_layer_that_an_archive_added_is_looked_through(tmp_path):
    put(tmp_path, files={"pets-v3/pets/a/1.png": picture(), "pets-v3/pets/b/1.png": picture(), "README": ""})
    assert [(s.path, s.label) for s in formats.read(tmp_path, "classification")] == [
        ("pets-v3/pets/a/1.png", "a"),
        ("pets-v3/pets/b/1.png", "b"),
    ]


def test_a_batch_may_bring_one_class_alone(tmp_path):
    put(tmp_path, files={"seven/1.png": picture(), "seven/2.png": picture()})
    assert [s.label for s in formats.read(tmp_path, "classification")] == ["seven", "seven"]


def test_a_folder_of_texts_per_class(tmp_path):
    put(tmp_path, files={"train/pos/1.txt": "good\nfilm", "train/neg/1.txt": "bad", "test/pos/1.txt": "fine"})
    assert sorted(texts(tmp_path)) == [("bad", "neg", "train"), ("fine", "pos", "test"), ("good\nfilm", "pos", "train")]


# IDX


def idx(values):
    values = np.asarray(values, np.uint8)
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


PIXELS = np.arange(3 * 4 * 5).reshape(3, 4, 5)


@pytest.mark.parametrize("packed", [True, False])
def test_idx_pairs_become_png_with_their_split(tmp_path, packed):
    pack, end = (gzip.compress, ".gz") if packed else (bytes, "")
    names = {"train": "train", "t10k": "test"}
    put(tmp_path, files={f"{n}-images-idx3-ubyte{end}": pack(idx(PIXELS)) for n in names})
    put(tmp_path, files={f"{n}-labels-idx1-ubyte{end}": pack(idx([7, 0, 9])) for n in names})
    samples = list(formats.read(tmp_path, "classification"))
    assert [(s.label, s.split) for s in samples[:3]] == [("7", "test"), ("0", "test"), ("9", "test")]
    assert {s.split for s in samples[3:]} == {"train"}
    assert samples[1].path == "t10k-images-idx3-ubyte:1"
    assert (decode(samples[1].image, 1)[:, :, 0] == PIXELS[1]).all()


def test_idx_takes_names_from_classes_txt(tmp_path):
    files = {"images.idx3-ubyte": idx(PIXELS), "labels.idx1-ubyte": idx([1, 0, 1]), "classes.txt": "shirt\ncoat\n"}
    assert [s.label for s in formats.read(put(tmp_path, files=files), "classification")] == ["coat", "shirt", "coat"]


def test_idx_both_gzipped_and_unpacked_is_read_once(tmp_path):
    files = {"a-images-idx3-ubyte": idx(PIXELS), "a-labels-idx1-ubyte": idx([1, 2, 3])}
    put(tmp_path, files=files | {f"{name}.gz": gzip.compress(data) for name, data in files.items()})
    assert len(list(formats.read(tmp_path, "classification"))) == 3


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (idx(PIXELS), idx([1, 2]), "not a pair"),
        (idx(PIXELS)[:-1], idx([1, 2, 3]), "ends too early"),
        (b"\x00\x00", idx([1, 2, 3]), "not an IDX file"),
    ],
    ids=["another count", "cut pixels", "cut header"],
)
def test_damaged_idx_is_refused_with_the_reason(tmp_path, images, labels, message):
    put(tmp_path, files={"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": labels})
    with pytest.raises(LooplineError, match=message):
        list(formats.read(tmp_path, "classification"))


def test_truncated_gzip_is_refused(tmp_path):
    files = {"train-images-idx3-ubyte.gz": gzip.compress(idx(PIXELS))[:-12], "train-labels-idx1-ubyte": idx([1, 2, 3])}
    with pytest.raises(LooplineError, match="damaged"):
        list(formats.read(put(tmp_path, files=files), "classification"))


@pytest.mark.parametrize("shape", [(3, 4), (2, 5, 3), (300, 400, 3)])
def test_png_holds_the_same_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with Image.open(io.BytesIO(png.encode(pixels))) as image:
        image.load()
        assert (np.asarray(image) == pixels).all()


# YOLO

YAML = "names:\n  0: cat\n  1: dog\n"
HALF = "1 0.5 0.5 0.4 0.5\n"  # of 10 x 8: (3, 2) to (7, 6)


@pytest.mark.parametrize(
    ("image", "labels", "split"),
    [
        ("images/a.jpg", "labels/a.txt", None),
        ("images/val/a.jpg", "labels/val/a.txt", "val"),
        ("images/train2017/a.jpg", "labels/train2017/a.txt", "train"),
        ("valid/images/a.JPG", "valid/labels/a.TXT", "val"),
        ("a.png", "a.txt", None),
        ("Images/a.png", "Labels/a.txt", None),
    ],
)
def test_yolo_layouts(tmp_path, image, labels, split):
    put(tmp_path, files={image: picture(), labels: HALF, "data.yaml": YAML})
    (sample,) = formats.read(tmp_path, "detection")
    assert (sample.path, sample.split) == (image, split)
    assert boxes(tmp_path)[image] == [("dog", 3.0, 2.0, 7.0, 6.0)]


def test_yolo_boxes_are_shares_of_the_upright_image(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    put(tmp_path, files={"images/a.jpg": picture(form="JPEG", exif=turned), "labels/a.txt": "0 0.5 0.5 1 1"})
    assert boxes(tmp_path) == {"images/a.jpg": [("0", 0, 0, 8, 10)]}


def test_yolo_outlines_become_the_boxes_around_them(tmp_path):
    put(tmp_path, files={"a.png": picture(), "a.txt": "0 0.3 0.25 0.7 0.5 0.5 0.75", "classes.txt": "cat\n"})
    assert boxes(tmp_path) == {"a.png": [("cat", 3, 2, 7, 6)]}


def test_yolo_images_without_a_label_file_have_no_objects(tmp_path):
    put(tmp_path, files={"images/a.png": picture(), "images/b.png": picture(), "labels/a.txt": HALF})
    assert boxes(tmp_path)["images/b.png"] == []


def test_yolo_reports_what_it_cannot_use(tmp_path):
    lines = "zero 1 2 3 4\n0 0.5 0.5\n5 .5 .5 .1 .1\n0 320 240 50 50\n0 .5 .5 .5 .5\n"
    put(tmp_path, files={"images/a.png": picture(), "labels/a.txt": lines, "labels/b.txt": HALF, "data.yaml": YAML})
    put(tmp_path, files={"images/c.png": picture(), "labels/c.txt": HALF})
    sample = next(iter(formats.read(tmp_path, "detection")))
    assert [box.problem for box in sample.boxes] == [
        "broken label line",
        "broken label line",
        "class number without a name",
        "coordinates that are not fractions of the image",
        None,
    ]
    assert problems(tmp_path, "detection") == {"labels/b.txt": "labels without an image"}


def test_yolo_splits_from_data_yaml(tmp_path):
    yaml = YAML + "path: /home/someone/set\ntrain: /home/someone/set/images/one\nval: ../images/two\ntest: test.txt\n"
    names = ("images/one/a", "images/two/b", "images/three/c", "images/four/d")
    put(tmp_path, files={f"{name}.png": picture() for name in names} | {"data.yaml": yaml})
    put(tmp_path, files={f"{name.replace('images', 'labels')}.txt": HALF for name in names})
    put(tmp_path, files={"test.txt": "./images/three/c.png\n"})
    assert {s.path[-5]: s.split for s in formats.read(tmp_path, "detection")} == {
        "a": "train",
        "b": "val",
        "c": "test",
        "d": None,
    }


# COCO


def coco(images, annotations, categories=((1, "cat"), (2, "dog"))):
    return json.dumps(
        {
            "images": [{"id": i, "file_name": name, "width": 10, "height": 8} for i, name in images],
            "annotations": [{"image_id": i, "category_id": c, "bbox": b} | more for i, c, b, more in annotations],
            "categories": [{"id": i, "name": name} for i, name in categories],
        }
    )


def test_coco_boxes_are_corner_and_size(tmp_path):
    file = coco([(7, "a.png"), (8, "b.png")], [(7, 2, [3, 2, 4, 4], {}), (7, 1, [0.5, 0, 2, 2.5], {})])
    put(tmp_path, files={"annotations.json": file, "images/a.png": picture(), "images/b.png": picture()})
    assert boxes(tmp_path) == {
        "images/a.png": [("dog", 3, 2, 7, 6), ("cat", 0.5, 0, 2.5, 2.5)],
        "images/b.png": [],
    }
    assert {s.size for s in formats.read(tmp_path, "detection")} == {(10, 8)}


def test_coco_splits_are_in_the_names_of_its_files(tmp_path):
    for split in ("train2017", "val2017"):
        put(tmp_path, files={f"annotations/instances_{split}.json": coco([(1, "1.png")], [(1, 1, [0, 0, 5, 5], {})])})
        put(tmp_path, files={f"annotations/person_keypoints_{split}.json": coco([(1, "1.png")], [])})
        put(tmp_path, files={f"images/{split}/1.png": picture()})
    assert [(s.path, s.split, len(s.boxes)) for s in formats.read(tmp_path, "detection")] == [
        ("images/train2017/1.png", "train", 1),
        ("images/val2017/1.png", "val", 1),
    ]


def test_coco_beside_its_images(tmp_path):
    for split in ("train", "valid"):
        file = coco([(1, "1.png")], [(1, 1, [0, 0, 5, 5], {})])
        put(tmp_path, files={f"{split}/_annotations.coco.json": file, f"{split}/1.png": picture()})
    assert [(s.path, s.split) for s in formats.read(tmp_path, "detection")] == [
        ("train/1.png", "train"),
        ("valid/1.png", "val"),
    ]


def test_coco_reports_what_it_cannot_use(tmp_path):
    annotations = [
        (1, 1, [0, 0, 5, 5], {"iscrowd": 1}),
        (1, 3, [0, 0, 5, 5], {}),
        (1, 1, [], {}),
        (9, 1, [0, 0, 5, 5], {}),
    ]
    file = coco([(1, "a.png"), (2, "gone.png")], annotations)
    put(tmp_path, files={"all.json": file, "a.png": picture(), "extra.png": picture()})
    assert [b.problem for s in formats.read(tmp_path, "detection") if s.path == "a.png" for b in s.boxes] == [
        "box around a crowd",
        "class number without a name",
        "annotation without a box",
    ]
    assert problems(tmp_path, "detection") == {
        "all.json:annotations[3]": "annotation without an image",
        "all.json:gone.png": "image file not found",
        "extra.png": "image without annotation",
    }


# Pascal VOC


def voc(name, *objects, size=(10, 8)):
    entries = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for label, x1, y1, x2, y2 in objects
    )
    return (
        f"<annotation><filename>{name}</filename><size><width>{size[0]}</width><height>{size[1]}</height></size>"
        f"{entries}</annotation>"
    )


def test_voc_with_decimals_and_suffixes_in_any_case(tmp_path):
    files = {"Annotations/a.Xml": voc("a.jpg", ("cat", "3.5", 2, "7.25", 6)), "JPEGImages/a.JPG": picture(form="JPEG")}
    assert boxes(put(tmp_path, files=files)) == {"JPEGImages/a.JPG": [("cat", 3.5, 2, 7.25, 6)]}


def test_voc_published_splits(tmp_path):
    for name in "abcd":
        put(tmp_path, files={f"V/Annotations/{name}.xml": voc(name), f"V/JPEGImages/{name}.jpg": picture()})
    lists = {"train": "a\n", "val": "b\r\n", "trainval": "a\nb\n", "test": "c\n", "cat_train": "d  1\n"}
    put(tmp_path, files={f"V/ImageSets/Main/{name}.txt": text for name, text in lists.items()})
    assert [(s.path[-5], s.split) for s in formats.read(tmp_path, "detection")] == [
        ("a", "train"),
        ("b", "val"),
        ("c", "test"),
        ("d", None),
    ]


def test_voc_beside_the_images_of_each_split(tmp_path):
    for split in ("train", "test"):
        put(tmp_path, files={f"{split}/a.xml": voc("a.png", (split, 0, 0, 5, 5)), f"{split}/a.png": picture()})
    assert boxes(tmp_path) == {"test/a.png": [("test", 0, 0, 5, 5)], "train/a.png": [("train", 0, 0, 5, 5)]}
    assert {s.split for s in formats.read(tmp_path, "detection")} == {"train", "test"}


def test_voc_finds_an_image_by_the_name_inside(tmp_path):
    put(tmp_path, files={"x/001.xml": voc("C:\\photos\\cow.png", ("cow", 0, 0, 5, 5)), "y/cow.png": picture()})
    assert list(boxes(tmp_path)) == ["y/cow.png"]


def test_voc_reports_what_it_cannot_use(tmp_path):
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]><annotation>&a;</annotation>'
    files = {"a.xml": voc("a.png"), "bomb.xml": bomb, "cut.xml": voc("cut.png")[:-5], "z.xml": voc("z.png")}
    put(tmp_path, files=files | {"a.png": picture(), "extra.png": picture(), "bomb.png": picture()})
    assert problems(tmp_path, "detection") == {
        "bomb.xml": "broken XML",
        "cut.xml": "broken XML",
        "z.xml": "annotation without an image",
        "bomb.png": "image without annotation",
        "extra.png": "image without annotation",
    }


# Tables of texts


def test_csv_with_quotes_lines_inside_and_a_byte_order_mark(tmp_path):
    put(tmp_path, files={"r.csv": '\ufeffReview,Sentiment\r\n"a, ""b""\nc",pos\r\nd\u0085e\u2028f,neg\r\n'})
    assert texts(tmp_path) == [('a, "b"\nc', "pos", None), ("d\u0085e\u2028f", "neg", None)]


def test_csv_with_semicolons(tmp_path):
    put(tmp_path, files={"r.csv": "id;text;label\n1;a, b;x\n"})
    assert texts(tmp_path) == [("a, b", "x", None)]


def test_csv_in_windows_1252(tmp_path):
    put(tmp_path, files={"r.csv": "text,label\ncafé “5 €”,x\n".encode("cp1252")})
    assert texts(tmp_path) == [("café “5 €”", "x", None)]


def test_tsv_takes_quotes_as_text_unless_they_wrap_a_cell(tmp_path):
    put(tmp_path, files={"r.tsv": 'sentence\tlabel\nshe said "no\t0\n"a ""b"""\t1\n"yes" and "no"\t1\n'})
    assert texts(tmp_path) == [('she said "no', "0", None), ('a "b"', "1", None), ('"yes" and "no"', "1", None)]


def test_json_lines_keep_line_separators_inside_texts(tmp_path):
    rows = [{"content": "a\u2028b\u0085c", "category": 3, "n": [1]}, {"content": "d", "category": True}]
    put(tmp_path, files={"r.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)})
    assert texts(tmp_path) == [("a\u2028b\u0085c", "3", None), ("d", "true", None)]


def test_a_json_array(tmp_path):
    put(tmp_path, files={"r.json": json.dumps([{"text": "a", "label": 1.0}])})
    assert texts(tmp_path) == [("a", "1", None)]


def test_parquet_with_class_names_of_the_datasets_library(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": ["a", "b", None, "d"], "label": [1, 0, -1, 5], "other": [1, 2, 3, 4]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "validation-00000-of-00001.parquet")
    assert texts(tmp_path) == [("a", "pos", "val"), ("b", "neg", "val"), ("", None, "val"), (None, None, "val")]
    assert problems(tmp_path, "text") == {
        "validation-00000-of-00001.parquet:4": "class number without a name",
    }


def test_a_column_of_splits_wins_over_the_name_of_the_file(tmp_path):
    put(tmp_path, files={"train.csv": "text,label,split\na,x,test\nb,y,\nc,x,dev\nd,y,holdout\n"})
    assert [(s.text, s.split) for s in formats.read(tmp_path, "text") if not s.problem] == [
        ("a", "test"),
        ("b", "train"),
        ("c", "val"),
    ]
    assert problems(tmp_path, "text") == {"train.csv:5": "unknown split name"}


def test_broken_rows_are_reported_with_their_line(tmp_path):
    put(
        tmp_path,
        files={"a.csv": "text,label\na,x,more\nb\n\nc,x\n", "b.jsonl": '{"text": "a", "label": "x"}\n{"te\n[1]\n'},
    )
    put(tmp_path, files={"c.tsv": "text\tlabel\na\nb\tx\n", "d.csv": "some,thing\n1,2\n"})
    assert problems(tmp_path, "text") == {
        "a.csv:2": "row with more columns than the header",
        "a.csv:3": "row with fewer columns than the header",
        "b.jsonl:2": "not JSON",
        "b.jsonl:3": "not a JSON object",
        "c.tsv:2": "row with fewer columns than the header",
        "d.csv": "table without a text column and a label column",
    }


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        (["id", "sentence", "label"], ("sentence", "label", None)),
        (["Review", "CLASS", "Subset"], ("Review", "CLASS", "Subset")),
        (["label", "label_text", "text"], ("text", "label_text", None)),
        (["text", "content", "target"], ("text", "target", None)),
        (["text", "score"], None),
    ],
)
def test_columns_are_picked_by_their_names(columns, chosen):
    from loopline.data.formats.text_tables import pick

    assert pick(columns) == chosen


# Lines


def test_a_file_per_class_named_by_its_suffix(tmp_path):
    put(tmp_path, files={"rt.pos": "good\nfine…ly\n".encode("cp1252"), "rt.neg": "bad\n\n", "LICENSE": "x"})
    assert texts(tmp_path) == [
        ("bad", "neg", None),
        ("", "neg", None),
        ("good", "pos", None),
        ("fine…ly", "pos", None),
    ]


@pytest.mark.parametrize(
    "rows", ["good film\t1\nbad\tor worse\t0\ngood\t1\n", "1\tgood film\n0\tbad\tor worse\n1\tgood\n"]
)
def test_text_tab_label_in_either_order(tmp_path, rows):
    put(tmp_path, files={"yelp.txt": rows, "readme.txt": "About"})
    assert texts(tmp_path) == [("good film", "1", None), (None, None, None), ("good", "1", None)]
    assert problems(tmp_path, "text") == {"yelp.txt:2": "line with more than one tab"}


def test_tabbed_lines_report_what_they_cannot_use(tmp_path):
    rows = "a\t1\nb\t0\nc\t1\nd\t0\ne\t1\nno tab\n"
    put(tmp_path, files={"r.txt": rows, "notes.txt": "nothing\n"})
    assert problems(tmp_path, "text") == {
        "notes.txt": "file without tab-separated lines",
        "r.txt:6": "line without a tab",
    }


def test_texts_and_labels_side_by_side(tmp_path):
    files = {"train_text.txt": "a\tb\n\u0085c\n", "train_labels.txt": "1\n0\n", "mapping.txt": "0\tneg\n1\tpos\n"}
    put(tmp_path, files=files)
    assert texts(tmp_path) == [("a\tb", "pos", "train"), ("\u0085c", "neg", "train")]


def test_texts_and_labels_of_different_length_are_refused(tmp_path):
    put(tmp_path, files={"val_text.txt": "a\nb\n", "val_labels.txt": "1\n"})
    with pytest.raises(LooplineError, match=r"has 2 lines, val_labels\.txt has 1"):
        texts(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lines_end_at_newlines_only(encoding):
    assert common.lines("a\u0085b\u2028c\x0cd\r\ne\n\nf".encode(encoding)) == ["a\u0085b\u2028c\x0cd", "e", "", "f"]


# Recognition


def test_an_unknown_folder_is_refused_with_files_seen_and_layouts_accepted(tmp_path):
    put(tmp_path, files={"a.docx": "", "b.docx": "", "notes/c.pdf": "", "d.csv": "title;stars\n"})
    with pytest.raises(LooplineError) as caught:
        recognise(tmp_path, "text")
    message = str(caught.value)
    assert "Seen: 2 .docx, 1 .csv, 1 .pdf (a.docx, b.docx, d.csv, ...)" in message
    assert "Columns of d.csv: title, stars" in message
    assert "JSON Lines or Parquet" in message
    assert "COCO" not in message


def test_a_folder_for_another_task_is_refused_with_that_task(tmp_path):
    put(tmp_path, files={"images/a.png": picture(), "labels/a.txt": HALF})
    with pytest.raises(LooplineError, match="looks like YOLO, which is for detection"):
        recognise(tmp_path, "classification")


def test_two_formats_at_once_are_refused(tmp_path):
    put(tmp_path, files={"a.png": picture(), "a.txt": HALF, "a.xml": voc("a.png")})
    with pytest.raises(LooplineError, match=r"more than one format: YOLO, Pascal VOC"):
        recognise(tmp_path, "detection")


@pytest.mark.parametrize("task", ["classification", "detection", "text"])
def test_an_empty_folder_and_a_missing_one(tmp_path, task):
    with pytest.raises(LooplineError, match="no files"):
        recognise(tmp_path, task)
    with pytest.raises(LooplineError, match="is not a folder"):
        recognise(tmp_path / "nowhere", task)


@pytest.mark.parametrize("name", ["data.csv.gz", "photos.zip", "photos.tar"])
@pytest.mark.parametrize("task", ["text", "detection"])
def test_an_archive_is_refused_with_advice_to_unpack_it(tmp_path, name, task):
    put(tmp_path, files={name: b"PK"})
    for dataset in (tmp_path, tmp_path / name):
        with pytest.raises(LooplineError, match=f"Archives are not read: unpack {name} and give the folder"):
            list(formats.read(dataset, task))


@pytest.mark.parametrize(
    "shape",
    [
        "<polygon><x1>1</x1><y1>1</y1><x2>9</x2><y2>1</y2><x3>9</x3><y3>7</y3></polygon>",
        "<robndbox><cx>5</cx><cy>4</cy><w>3</w><h>2</h><angle>0.3</angle></robndbox>",
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax></bndbox>",
    ],
)
def test_voc_objects_without_a_whole_bndbox_are_counted(tmp_path, shape):
    content = f"<annotation><filename>a.png</filename><object><name>cat</name>{shape}</object></annotation>"
    put(tmp_path, files={"Annotations/a.xml": content, "JPEGImages/a.png": picture()})
    (sample,) = formats.read(tmp_path, "detection")
    assert [box.problem for box in sample.boxes] == ["annotation without a box"]
