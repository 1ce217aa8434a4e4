"""Files as labelling tools, phones and other systems write them: each is used or reported, and nothing is guessed."""

import contextlib
import io
import json
import os
import struct
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loopline.data import formats
from loopline.data.clean import clean
from loopline.data.formats.common import split_of_file, split_of_folder
from loopline.data.formats.folders import written
from loopline.data.formats.xmlfile import UnusableXml, parse
from loopline.errors import LooplineError
from loopline.settings import SplitSettings

SPLIT = SplitSettings(seed=0, val=0.2, test=0.2)


def picture(shade=0):
    buffer = io.BytesIO()
    Image.new("RGB", (10, 8), (shade % 256, 40, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def put(root, files):
    """Write the files, {name: content}."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def read(root, task="detection"):
    return {sample.path: sample for sample in formats.read(root, task, unused=True)}


def boxes(root):
    """{path: [(label, x1, y1, x2, y2)]} of the usable boxes of usable samples."""
    return {
        path: [(b.label, b.x1, b.y1, b.x2, b.y2) for b in sample.boxes or () if not b.problem]
        for path, sample in read(root).items()
        if not sample.problem
    }


def box_problems(root):
    return [box.problem for sample in read(root).values() for box in sample.boxes or ()]


def problems(root, task="detection"):
    return {path: sample.problem for path, sample in read(root, task).items() if sample.problem}


# Nothing vanishes

NAMES = st.sampled_from(
    [
        "1.png",
        "2.png",
        "notice_1.png",
        "license_plate.jpg",
        "copying.txt",
        "README",
        "readme.md",
        "LICENSE",
        ".DS_Store",
        "a.csv",
        "x.dvc",
        "Thumbs.db",
        "citation",
        "changelog 2.png",
        "data.yaml",
        "noext",
        "notice.pdf",
    ]
)
FOLDERS = st.sampled_from(
    ["", "cat/", "dog/", "cat/more/", "train/cat/", "test/dog/", ".git/", "train_images/", "licence/"]
)


@settings(max_examples=150, deadline=None)
@given(
    files=st.sets(st.tuples(FOLDERS, NAMES), min_size=1, max_size=12), task=st.sampled_from(["classification", "text"])
)
def test_each_file_of_a_folder_is_used_set_aside_or_named_as_left_out(files, task):
    with tempfile.TemporaryDirectory() as name:
        root = put(Path(name), {folder + file: picture(n) for n, (folder, file) in enumerate(sorted(files))})
        try:
            samples = list(formats.read(root, task, unused=True))
        except LooplineError:
            return
        seen = {
            "/".join(path.split("/")[:1]) + "/" if path.startswith(".git/") else path for path in map("".join, files)
        }
        assert sorted(sample.path for sample in samples) == sorted(seen)  # each of them once
        cleaned = clean([("set", samples)], task=task, split=SPLIT)
        assert len(cleaned.samples) + cleaned.aside.total + cleaned.left_out.total == len(seen)


@pytest.mark.parametrize("start", ["readme", "license", "licence", "notice", "citation", "changelog", "copying"])
def test_names_that_begin_like_documents_are_data(tmp_path, start):
    names = [f"{start}_plate", f"{start}s", f"{start}-1"]
    put(tmp_path, {f"images/{name}.png": picture(n) for n, name in enumerate(names)})
    put(tmp_path, {f"labels/{name}.txt": "0 .5 .5 .5 .5" for name in names})
    put(tmp_path, {f"{start.upper()}.md": "x", start: "x"})
    samples = read(tmp_path)
    assert [path for path, sample in samples.items() if not sample.problem] == sorted(f"images/{n}.png" for n in names)
    assert {path for path, sample in samples.items() if sample.unused} == {f"{start.upper()}.md", start}


@contextlib.contextmanager
def ordinary_user():
    """Drop the superuser's right to read everything, even Python's own files: import all needed modules before."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def closed():
    """A folder that any user may read, except the parts that a test closes."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        for path in Path(name).iterdir():
            path.chmod(0o755)


def test_folders_and_files_that_cannot_be_opened_are_counted(closed):
    put(closed, {f"{label}/{n}.png": picture(n) for label in "abc" for n in range(2)})
    # This also loads every module that reading needs: see ordinary_user.
    assert problems(closed, "classification") == {}
    (closed / "a/1.png").chmod(0)
    (closed / "c").chmod(0)
    with ordinary_user():
        reasons = problems(closed, "classification")
    assert reasons == {"a/1.png": "file that cannot be opened", "c/": "folder that cannot be opened"}


def test_annotations_that_cannot_be_opened_are_counted(closed):
    put(closed, {f"{name}.png": picture() for name in "ab"} | {"a.txt": "0 .5 .5 .5 .5", "b.txt": "0 .5 .5 .5 .5"})
    assert problems(closed) == {}
    (closed / "b.txt").chmod(0)
    with ordinary_user():
        assert problems(closed) == {"b.png": "file that cannot be opened"}


def test_a_pipe_is_not_read(tmp_path):
    put(tmp_path, {"a/1.png": picture(), "b/1.png": picture()})
    os.mkfifo(tmp_path / "a/2.png")
    assert problems(tmp_path, "classification") == {"a/2.png": "not a regular file"}


@pytest.mark.parametrize(
    "folder", ["@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information", "__pycache__", "__MACOSX"]
)
@pytest.mark.parametrize("above", ["", "a/"])
def test_system_folders_are_no_classes_and_hold_no_samples(tmp_path, folder, above):
    put(tmp_path, {"a/1.png": picture(), "b/1.png": picture(1), f"{above}{folder}/a/SYNO_THUMB.png": picture(2)})
    samples = read(tmp_path, "classification")
    assert [sample.label for sample in samples.values() if not sample.unused] == ["a", "b"]
    assert problems(tmp_path, "classification") == {f"{above}{folder}/": "system folder"}


# Names of splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train_images", "train"),
        ("TestImages", "test"),
        ("valid", "val"),
        ("val-set", "val"),
        ("testset", "test"),
        ("images_train", "train"),
        ("training data", "train"),
        ("train2017", "train"),
        ("TRAIN_IMGS", "train"),
        ("t10k", "test"),
        ("dev", "val"),
        ("trainval", "train"),
        ("train_station", None),
        ("test_tube", None),
        ("train_猫", None),
        ("images", None),
        ("train_test", None),
        ("2017", None),
        ("devices", None),
        ("evaluation", "val"),
        ("train_fold_1", "train"),
        ("evaluate_me", None),
    ],
)
def test_a_name_stands_for_a_split_if_its_other_words_say_nothing(name, split):
    assert split_of_folder(name) == split


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("reviews_train.csv", "train"),
        ("trainset.csv", "train"),
        ("testdata.manual.csv", "test"),
        ("training.1600000.processed.noemoticon.csv", "train"),
        ("reviewsTest.csv", "test"),
        ("trainCoco.json", "train"),
        ("eval.csv", "val"),
        ("validate.csv", "val"),
        ("instances_val2017.json", "val"),
        ("t10k-images-idx3-ubyte", "test"),
        ("训练train.csv", "train"),
        ("train.parquet/part-00000-9f1c-c000.snappy.parquet", "train"),
        ("test.csv/part-0.csv", "test"),
        ("testset/reviews.csv", "test"),
        ("trainval.json", "train"),
        ("train_test.csv", None),
        ("contrast.csv", None),
        ("latest.csv", None),
        ("latestData.csv", None),
        ("developer.csv", None),
        ("validity.csv", None),
        ("retrieval.csv", None),
        ("trainer.csv", None),
        ("reviews.csv", None),
    ],
)
def test_a_file_belongs_to_a_split_if_a_word_of_its_name_says_so(name, split):
    assert split_of_file(name) == split


@pytest.mark.parametrize(
    ("layout", "named"),
    [
        (("train_images/1", "train_images/2", "test_images/1"), "test_images (1 files), train_images (2 files)"),
        (("train/1", "valid/1"), "train (1 files), valid (1 files)"),
        (("train/1", "test/1", "masks/1"), "test (1 files), train (1 files)"),
        (("imdb/train/pos/1", "imdb/test/pos/1", "yelp/train/pos/1", "yelp/x"), r"imdb/{test,train}, yelp/{train}"),
        (("cat/train/1", "cat/test/2", "dog/train/1", "cat/3", "dog/3"), r"cat/{test,train}, dog/{train}"),
        (("train/cat/1", "test/cat/1", "extra/1"), "test (1 files), train (1 files)"),
    ],
)
@pytest.mark.parametrize(("task", "suffix"), [("classification", ".png"), ("text", ".txt")])
def test_splits_never_become_classes(tmp_path, layout, named, task, suffix):
    put(tmp_path, {name + suffix: picture() for name in layout} | {"train.html": "x"})
    with pytest.raises(LooplineError) as refusal:
        list(formats.read(tmp_path, task))
    assert named in str(refusal.value)


def test_other_folders_beside_published_splits_change_nothing(tmp_path):
    put(
        tmp_path, {"train_images/a/1.png": picture(), "test_images/b/1.png": picture(), "meta/x.pdf": "x", "1.csv": "x"}
    )
    samples = read(tmp_path, "classification")
    assert {p: (s.label, s.split) for p, s in samples.items() if not s.unused} == {
        "train_images/a/1.png": ("a", "train"),
        "test_images/b/1.png": ("b", "test"),
    }
    assert {path for path, sample in samples.items() if sample.unused} == {"meta/x.pdf", "1.csv"}


# Folders of classes


def labels(files, head="image_id,dx", word=str):
    """A table of labels as on Kaggle, whose labels differ from the folders."""
    return "\n".join([head, *(f"{word(file)},{'ab'[number // 2 % 2]}" for number, file in enumerate(files))])


def stem(path):
    return Path(path).stem


PARTS = [f"HAM10000_images_part_{part}/ISIC_{number}" for number in range(8) for part in (number % 2 + 1,)]
SITES = [f"{('north', 'south')[number % 2]}/{number}" for number in range(8)]
CLASSES = [f"{('cat', 'dog')[number % 2]}/{number}" for number in range(8)]


@pytest.mark.parametrize(
    ("files", "table", "named"),
    [
        (
            PARTS,
            {"HAM10000_metadata.csv": labels(PARTS, "lesion_id,dx", stem)},
            "HAM10000_images_part_1, HAM10000_images_part_2",
        ),
        (PARTS, {}, "HAM10000_images_part_1, HAM10000_images_part_2"),
        (["part1/1", "part2/2"], {}, "part1, part2"),
        (["images/1", "masks/1"], {}, "images, masks"),
        (["images/1", "thumbs/1"], {}, "images, thumbs"),
        (["train/batch_a/1", "train/batch_b/2", "test/batch_a/3"], {}, "batch_a, batch_b"),
        (SITES, {"labels.csv": labels(SITES)}, "labels.csv"),
        (SITES, {"labels.csv": labels(SITES, "file,x,dx", lambda file: f"{stem(file)},")}, "labels.csv"),
        (
            SITES,
            {"labels.csv": labels(SITES, word=lambda file: f"C:\\set\\{Path(file).name}").replace(",", ";")},
            "labels.csv",
        ),
        (SITES, {"a/train.csv": labels(SITES[:3]), "b/test.csv": labels(SITES[3:])}, "a/train.csv"),
        (SITES, {"x.jsonl": "\n".join(json.dumps({"file": f, "dx": n % 3}) for n, f in enumerate(SITES))}, "x.jsonl"),
        (SITES[::2], {"labels.csv": labels(SITES[::2], word=stem)}, "labels.csv"),
    ],
)
@pytest.mark.parametrize(("task", "suffix"), [("classification", ".png"), ("text", ".txt")])
def test_folders_are_no_classes_if_a_table_labels_their_files_or_their_names_say_nothing(
    tmp_path, files, table, named, task, suffix
):
    put(tmp_path, {name + suffix: picture(n) for n, name in enumerate(files)} | table)
    with pytest.raises(LooplineError, match="a table of labels is not read with images") as refusal:
        read(tmp_path, task)
    assert named in str(refusal.value)


@pytest.mark.parametrize(
    "table",
    [
        "id,name\n0,cat\n1,dog\n",  # classes.csv, while files are called 0.png and 1.png
        "epoch,loss\n" + "".join(f"{number},0.5\n" for number in range(8)),
        "file,label\n" + "".join(f"{name}.png,{name[:3]}\n" for name in CLASSES),
        "class index;filepaths;labels\n"
        + "".join(f"{'cd'.index(name[0])};train/{name}.png;{name[:3].upper()}\n" for name in CLASSES),
        "file,reason\ncat/0.png,blurred\n",
        "file\n" + "\n".join(CLASSES),
        '"file,label\n',
        "a,a\n1,2\n",
    ],
)
@pytest.mark.parametrize(("task", "suffix"), [("classification", ".png"), ("text", ".txt")])
def test_a_stray_table_beside_folders_of_classes_is_left_out(tmp_path, table, task, suffix):
    put(tmp_path, {name + suffix: picture(n) for n, name in enumerate(CLASSES)} | {"table.csv": table})
    samples = read(tmp_path, task)
    assert {path: sample.label for path, sample in samples.items() if not sample.problem} == {
        name + suffix: name[:3] for name in CLASSES
    }
    assert samples["table.csv"].unused


def test_one_class_of_a_batch_may_have_a_table_that_says_the_same(tmp_path):
    put(tmp_path, {"cat/0.png": picture(), "cat/1.png": picture(1), "labels.csv": "file,label\n0.png,Cat\n1.png,Cat\n"})
    assert {sample.label for sample in read(tmp_path, "classification").values() if not sample.unused} == {"cat"}


@pytest.mark.parametrize(
    "names",
    [("0", "1"), ("A", "B"), ("label_0", "label_1"), ("photo", "document"), ("s1", "s2"), ("cat images", "dog images")],
)
def test_plain_names_may_be_classes(tmp_path, names):
    put(tmp_path, {f"{name}/{n}.png": picture(n) for n, name in enumerate(names)})
    assert {sample.label for sample in read(tmp_path, "classification").values()} == set(names)


@pytest.mark.parametrize("above", ["", "train/"])
@pytest.mark.parametrize(
    ("task", "suffix", "other", "reason"),
    [
        ("classification", ".png", ".HEIC", "unreadable image"),
        ("classification", ".png", ".avif", "unreadable image"),
        ("text", ".txt", ".html", "file that is not .txt"),
        ("text", ".txt", ".docx", "file that is not .txt"),
    ],
)
def test_a_class_whose_files_are_all_of_another_kind_is_set_aside(tmp_path, above, task, suffix, other, reason):
    put(tmp_path, {f"{above}{name}/{name}{n}{suffix}": picture(n) + name.encode() for name in "ab" for n in range(2)})
    put(tmp_path, {f"{above}c/IMG_{n}{other}": f"{n}" for n in range(3)} | {"scripts/run.py": "x"})
    cleaned = clean([("set", formats.read(tmp_path, task, unused=True))], task=task, split=SPLIT)
    assert (len(cleaned.samples), cleaned.aside.counts) == (4, {reason: 3})
    assert cleaned.left_out.examples == {f"not used in the format {FOLDER_FORMATS[task]}": ["scripts/run.py"]}


FOLDER_FORMATS = {"classification": "a folder per class", "text": "a folder of texts per class"}


@pytest.mark.parametrize("name", ["unsup", "Unlabeled", "un-labelled", "unlabeled_images"])
@pytest.mark.parametrize(("task", "suffix"), [("classification", ".png"), ("text", ".txt")])
def test_a_folder_without_labels_is_no_class(tmp_path, name, task, suffix):
    def content(number):
        return picture(number) if suffix == ".png" else f"text {number}".encode()

    put(tmp_path, {f"train/{label}/1{suffix}": content(n) for n, label in enumerate(("pos", "neg", name))})
    put(tmp_path, {f"test/{label}/2{suffix}": content(n + 9) for n, label in enumerate(("pos", "neg"))})
    cleaned = clean([("set", formats.read(tmp_path, task))], task=task, split=SPLIT)
    assert {sample.label for sample in cleaned.samples} == {"pos", "neg"}
    assert cleaned.aside.examples == {"no label": [f"train/{name}/1{suffix}"]}


# Names


@pytest.mark.parametrize("label", ["a/b", "5%", "5%Ba", ".hidden", "100%25", "50%20off", "%2F", "x.y"])
def test_a_written_folder_name_is_read_back(tmp_path, label):
    put(tmp_path, {f"{written(label)}/1.png": picture(), "other/1.png": picture(1)})
    assert {sample.label for sample in formats.read(tmp_path, "classification")} == {label, "other"}


def test_percent_signs_in_other_folder_names_stay(tmp_path):
    names = {"5%Ba", "5%Ca", "50%20off", "100%", "a%2fb"}
    put(tmp_path, {f"{name}/{n}.png": picture(n) for n, name in enumerate(sorted(names))})
    assert {sample.label for sample in formats.read(tmp_path, "classification")} == names


def decomposed(name):
    return unicodedata.normalize("NFD", name)


COMPOSED = "Mü_ñ"


def rectangle(name, **more):
    value = {"x": 10, "y": 25, "width": 40, "height": 50, "rectanglelabels": ["cat"]}
    result = {"type": "rectanglelabels", "original_width": 10, "original_height": 8, "value": value}
    return {"id": 1, "data": {"image": name}, "annotations": [{"result": [result]}]} | more


def annotated(name):
    """The same image, called `name`, in each format that finds files by name, with one box (1, 2) to (5, 6)."""
    coco = {
        "images": [{"id": 1, "file_name": f"{name}.png", "width": 10, "height": 8}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 4, 4]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    corners = "<xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>6</ymax>"
    entry = f"<object><name>cat</name><bndbox>{corners}</bndbox></object>"
    cvat = f'<image name="{name}.png" width="10" height="8"><box label="cat" xtl="1" ytl="2" xbr="5" ybr="6"/></image>'
    return {
        "coco": {"coco.json": json.dumps(coco)},
        "voc": {"1.xml": f"<annotation><filename>{name}.png</filename>{entry}</annotation>"},
        "voc by its own name": {f"xml/{name}.xml": f"<annotation>{entry}</annotation>"},
        "yolo": {f"labels/{name}.txt": "0 .3 .5 .4 .5", "labels/classes.txt": "cat\n"},
        "cvat": {"annotations.xml": f"<annotations>{cvat}</annotations>"},
        "label studio": {"export.json": json.dumps([rectangle(f"/data/upload/1/0a1b2c3d-{name}.png")])},
    }


@pytest.mark.parametrize("form", annotated(""))
@pytest.mark.parametrize(("of_file", "of_annotation"), [(decomposed, str), (str, decomposed)])
def test_names_are_compared_composed_in_every_format(tmp_path, form, of_file, of_annotation):
    image = f"images/{of_file(COMPOSED)}.png"
    put(tmp_path, {image: picture()} | annotated(of_annotation(COMPOSED))[form])
    assert {
        path: [(label, *map(round, corners)) for label, *corners in image_boxes]
        for path, image_boxes in boxes(tmp_path).items()
    } == {image: [("cat", 1, 2, 5, 6)]}


SPLIT_FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def of_folders(form):
    """Annotations without splits for images in images/train, images/validation and images/test, and for one more there."""
    names = [f"images/{folder}/{folder}.png" for folder in SPLIT_FOLDERS]
    ids = list(enumerate(names))
    coco = {
        "images": [{"id": n, "file_name": Path(name).name if n else name} for n, name in ids],
        "annotations": [{"image_id": n, "category_id": 1, "bbox": [1, 2, 4, 4]} for n, _ in ids],
        "categories": [{"id": 1, "name": "cat"}],
    }
    box = '<box label="cat" xtl="1" ytl="2" xbr="5" ybr="6"/><tag label="cat"/>'
    cvat = "".join(f'<image name="{name}">{box}</image>' for name in names)
    return {
        "coco": {"instances.json": json.dumps(coco)},
        "voc": {f"Annotations/{Path(name).stem}.xml": "<annotation></annotation>" for name in names},
        "cvat": {"annotations.xml": f"<annotations>{cvat}</annotations>"},
        "label studio": {"project.json": json.dumps([rectangle(f"/data/local-files/?d={name}") for name in names])},
        "choices": {"project.json": json.dumps([choice("cat", image=name) for name in names])},
    }[form]


@pytest.mark.parametrize(
    ("form", "task"),
    [
        ("coco", "detection"),
        ("voc", "detection"),
        ("cvat", "detection"),
        ("cvat", "classification"),
        ("label studio", "detection"),
        ("choices", "classification"),
    ],
)
def test_the_folders_of_images_are_their_splits_if_annotations_name_none(tmp_path, form, task):
    images = [f"images/{folder}/{name}.png" for folder in SPLIT_FOLDERS for name in (folder, f"other_{folder}")]
    put(tmp_path, of_folders(form) | {image: picture(n) for n, image in enumerate(images)})
    samples = read(tmp_path, task)
    assert {path: sample.split for path, sample in samples.items()} == {
        image: SPLIT_FOLDERS[image.split("/")[1]] for image in images
    }
    assert [path for path, sample in samples.items() if sample.problem] == [path for path in samples if "other" in path]


def test_classes_that_look_the_same_become_one(tmp_path):
    put(tmp_path, {f"{name}/{n}.png": picture(n) for n, name in enumerate((COMPOSED, decomposed(COMPOSED), "other"))})
    cleaned = clean([("set", formats.read(tmp_path, "classification"))], task="classification", split=SPLIT)
    assert {sample.label for sample in cleaned.samples} == {COMPOSED, "other"}


# YOLO


def yolo(root, *labels, **files):
    put(root, {"images/a.png": picture(), "labels/a.txt": "\n".join(labels)})
    return put(root, {name.replace("_", "."): content for name, content in files.items()})


@pytest.mark.parametrize(
    "place", ["classes.txt", "labels/classes.txt", "labels/train/Classes.txt", "images/obj.names", "a/_darknet.labels"]
)
def test_yolo_finds_the_names_wherever_a_tool_leaves_them(tmp_path, place):
    put(yolo(tmp_path, "1 .5 .5 .5 .5"), {place: "cat\ndog\n\n"})
    assert [box[0] for box in boxes(tmp_path)["images/a.png"]] == ["dog"]


def test_yolo_takes_names_from_any_yaml_as_they_are_written(tmp_path):
    yolo(tmp_path, "1 .5 .5 .5 .5", my_yaml="names: [yes, no]\n", hyp_yaml="lr0: .1\n")
    assert [box[0] for box in boxes(tmp_path)["images/a.png"]] == ["no"]
    assert problems(tmp_path) == {"hyp.yaml": "not used in the format YOLO"}


@pytest.mark.parametrize("other", ["cat\nbus\n", "dog\ncat\n"])
def test_yolo_names_that_contradict_are_refused(tmp_path, other):
    put(yolo(tmp_path, "1 .5 .5 .5 .5", coco_yaml="names: {0: cat, 1: dog}\n"), {"labels/classes.txt": other})
    with pytest.raises(LooplineError, match=r"in .*coco\.yaml and .* in .*classes\.txt"):
        boxes(tmp_path)


def test_yolo_names_that_cannot_be_read_are_not_numbers(tmp_path):
    yolo(tmp_path, "0 .5 .5 .5 .5")
    (tmp_path / "data.yaml").unlink(missing_ok=True)
    (tmp_path / "data.yaml").symlink_to("gone.yaml")
    with pytest.raises(LooplineError, match=r"data\.yaml cannot be read"):
        read(tmp_path)


def test_files_of_labels_and_of_names_count_as_used(tmp_path):
    put(tmp_path, {"train_text.txt": "a\nb\n", "train_labels.txt": "0\n1\n", "mapping.txt": "0\tx\n1\ty\n"})
    assert problems(tmp_path, "text") == {}


def test_yolo_files_of_names_may_be_shorter_than_others(tmp_path):
    put(yolo(tmp_path, "1 .5 .5 .5 .5", coco_yaml="names: {0: cat, 1: dog}\n"), {"labels/classes.txt": "cat\n"})
    assert boxes(tmp_path)["images/a.png"][0][0] == "dog"


POSE = "0 .5 .5 .4 .5 .4 .4 .6 .6 0 0"  # a box and three points


def test_yolo_boxes_of_poses_are_read_with_kpt_shape(tmp_path):
    yolo(tmp_path, POSE, "0 .5 .5 .4 .5", "0 .1 .1 .2 .2 .3 .3 .4 .4", data_yaml="names: [a]\nkpt_shape: [3, 2]\n")
    assert boxes(tmp_path) == {"images/a.png": [("a", 3, 2, 7, 6), ("a", 3, 2, 7, 6)]}
    assert box_problems(tmp_path) == [None, None, "broken label line"]


@pytest.mark.parametrize("line", [POSE, "0 .5 .5 .4 .5 .4 .4 2 .6 .6 1"])
def test_yolo_lines_that_could_be_poses_or_outlines_are_refused(tmp_path, line):
    with pytest.raises(LooplineError, match=r"labels/a\.txt:2: .* columns.*kpt_shape"):
        boxes(yolo(tmp_path, "0 .5 .5 .4 .5", line))


@pytest.mark.parametrize(
    "lines", [(POSE, "0 .1 .1 .9 .1 .9 .9 .1 .9 .05 .5"), (POSE, "0 .1 .1 .2 .2 .1 .2"), ("0 .2 .2 .8 .2 .8 .8 .2 .8",)]
)
def test_yolo_outlines_that_cannot_be_poses_are_read(tmp_path, lines):
    yolo(tmp_path, *lines)
    assert box_problems(tmp_path) == [None] * len(lines)


def test_yolo_kpt_shape_of_zeros_means_outlines(tmp_path):
    yolo(tmp_path, POSE, data_yaml="names: [a]\nkpt_shape: [0, 0]\n")
    assert boxes(tmp_path) == {"images/a.png": [("a", 0, 0, 6, pytest.approx(4.8))]}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 .5 .5 .2 .2 .93", "6 columns"),
        ("0 .5 .5 .2 .2 .1 .1 .2", "8 columns"),
        ("0 .5 .5 .2", "4 columns"),
        ("0.7 .5 .5 .2 .2", "whole number"),
        ("-1 .5 .5 .2 .2", "whole number"),
        ("nan .5 .5 .2 .2", "not every column is a number"),
        ("cat .5 .5 .2 .2", "not every column is a number"),
    ],
)
def test_yolo_lines_that_are_not_boxes_show_the_line_and_the_reason(tmp_path, line, reason):
    yolo(tmp_path, "0 .5 .5 .2 .2", line)
    broken = read(tmp_path)["images/a.png"].boxes[1]
    assert broken.problem == "broken label line"
    assert broken.detail.startswith(f"labels/a.txt:2: {line}: ")
    assert reason in broken.detail


TRACKS = ("0 .5 .5 .2 .2 .9 1", "0 .5 .5 .2 .2 .81 2", "0 .4 .5 .2 .2 .77 1")
TRIANGLE = "0 .1 .1 .5 .1 .5 .9"


def test_yolo_lines_of_a_tracker_are_no_outlines(tmp_path):
    yolo(tmp_path, "0 .5 .5 .2 .2", *TRACKS)
    broken = read(tmp_path)["images/a.png"].boxes[1:]
    assert {box.problem for box in broken} == {"broken label line"}
    assert all("7 columns, a box has 5; a confidence and a track number belong to" in box.detail for box in broken)


def test_yolo_outlines_of_three_points_may_touch_the_edge(tmp_path):
    yolo(tmp_path, "0 .1 .1 .5 .1 .9 1", TRIANGLE)
    assert box_problems(tmp_path) == [None, None]


def test_yolo_outlines_that_leave_the_image_are_broken(tmp_path):
    yolo(tmp_path, "0 .1 .1 .5 .1 .5 1.005", "0 .1 .1 .5 .1 .5 1.9", "0 -.1 .1 .5 .1 .5 .9", TRIANGLE)
    assert box_problems(tmp_path) == [None, *["coordinates that are not fractions of the image"] * 2, None]


def test_yolo_lists_of_images_may_come_from_another_machine(tmp_path):
    yolo(tmp_path, "0 .5 .5 .5 .5", data_yaml="names: [a]\ntest: test.txt\n", test_txt="/home/x/set/images/a.png\n")
    assert read(tmp_path)["images/a.png"].split == "test"


LINE = "0 .3 .5 .4 .5"


def test_yolo_labels_in_another_case_are_those_of_the_image(tmp_path):
    put(tmp_path, {f"images/{name}.png": picture() for name in ("I3", "a", "A", "Ü")})
    put(tmp_path, {f"labels/{name}.txt": LINE for name in ("i3", "A", decomposed("ü"))})
    assert {path: len(image_boxes) for path, image_boxes in boxes(tmp_path).items()} == {
        "images/A.png": 1,
        "images/I3.png": 1,
        "images/a.png": 0,
        "images/Ü.png": 1,
    }


def test_yolo_images_whose_labels_are_in_another_place_are_set_aside(tmp_path):
    put(tmp_path, {f"images/val/{name}.png": picture() for name in "abc"})
    put(tmp_path, {"labels/val/a.txt": LINE, "labels/validation/b.txt": LINE})
    assert {path: len(image_boxes) for path, image_boxes in boxes(tmp_path).items()} == {
        "images/val/a.png": 1,
        "images/val/c.png": 0,
    }
    assert problems(tmp_path) == {
        "images/val/b.png": "image whose labels are in another place",
        "labels/validation/b.txt": "labels without an image",
    }


def test_yolo_images_in_a_folder_or_split_without_labels_are_set_aside(tmp_path):
    put(tmp_path, {"train/images/a.png": picture(), "train/labels/a.txt": LINE, "train/images/b.png": picture()})
    put(tmp_path, {"preview.png": picture(), "runs/train/batch.png": picture(), "test/images/c.png": picture()})
    put(tmp_path, {"all/a.png": picture(), "all/a.txt": LINE, "all/d.png": picture(), "all/e.png": picture()})
    put(tmp_path, {"val.txt": "all/e.png\n"})
    assert set(boxes(tmp_path)) == {"train/images/a.png", "train/images/b.png", "all/a.png", "all/d.png"}
    assert problems(tmp_path) == {
        "all/e.png": "image in a split without labels",
        "preview.png": "image in a folder without labels",
        "runs/train/batch.png": "image in a folder without labels",
        "test/images/c.png": "image in a folder without labels",
    }


DARKNET = "classes = 1\ntrain  = data/train.txt\nvalid  = data/valid.txt\nnames = data/my_names.txt\nbackup = backup/\n"


def splits(root):
    return {path: sample.split for path, sample in read(root).items() if not sample.problem}


@pytest.mark.parametrize("settings", [{"obj.data": DARKNET, "my_names.txt": "cat\n"}, {"classes.txt": "cat\n"}])
def test_yolo_splits_from_the_lists_of_darknet(tmp_path, settings):
    files = {"obj_train_data/a.png": picture(), "obj_train_data/a.txt": "0 .3 .5 .4 .5"}
    files |= {"obj_valid_data/b.png": picture(), "obj_valid_data/b.txt": "0 .3 .5 .4 .5"}
    lists = {"train.txt": "data/obj_train_data/a.png\n\n", "valid.txt": "data/obj_valid_data/b.png\nx/gone.png\n"}
    put(tmp_path, files | lists | settings)
    assert splits(tmp_path) == {"obj_train_data/a.png": "train", "obj_valid_data/b.png": "val"}
    assert problems(tmp_path) == {"valid.txt:2": "image file not found"}
    assert [box[0] for box in boxes(tmp_path)["obj_train_data/a.png"]] == ["cat"]


@pytest.mark.parametrize(
    "yaml",
    [
        "train: /home/u/ds/one.txt\nval: /home/u/ds/two.txt",
        "train: /home/u/ds/a/images\nvalid: C:\\ds\\b\\images",
        "train: ds/a/images\nvalidation: [ds/b/images]",
        "path: /content/x\ntrain: a\nval: b",
    ],
)
@pytest.mark.parametrize("above", ["", "more/"])
def test_yolo_paths_of_another_machine_are_found_by_their_end(tmp_path, yaml, above):
    files = {f"{name}/images/{name}.png": picture() for name in "ab"}
    files |= {f"{name}/labels/{name}.txt": "0 .3 .5 .4 .5" for name in "ab"}
    files |= {"data.yaml": f"names: [cat]\n{yaml}\n", "one.txt": "a/images/a.png\n", "two.txt": "b/images/b.png\n"}
    put(tmp_path, {above + name: content for name, content in files.items()} | {"notes.md": "x"})
    assert splits(tmp_path) == {f"{above}a/images/a.png": "train", f"{above}b/images/b.png": "val"}


def test_yolo_paths_that_lead_nowhere_are_named(tmp_path):
    yolo(tmp_path, "0 .5 .5 .5 .5", data_yaml="names: [a]\ntrain: images\nval: ../valid/images\n")
    assert splits(tmp_path) == {"images/a.png": "train"}
    assert problems(tmp_path) == {"data.yaml:val: ../valid/images": "split whose folder or list is missing"}


@pytest.mark.parametrize(
    "other",
    [
        "kind: A\nmetadata:\n  namespace: x\n---\nkind: B\n",
        "names:\n  first: bob\n",
        "a: b: c\nnames:\n",
        "names: bob\n",
    ],
)
def test_yolo_is_read_beside_a_yaml_of_another_program(tmp_path, other):
    yolo(tmp_path, "0 .5 .5 .5 .5", a_yaml=other, data_yaml="names: [cat]\n")
    assert [box[0] for box in boxes(tmp_path)["images/a.png"]] == ["cat"]
    assert problems(tmp_path) == {"a.yaml": "not used in the format YOLO"}


@pytest.mark.parametrize("broken", ["names: {first: bob}\n", "a: b: c\nnames:\n", "{path: x, names: [a}\n"])
def test_yolo_names_that_are_broken_are_refused_where_nothing_else_has_names(tmp_path, broken):
    with pytest.raises(LooplineError, match=r"data\.yaml"):
        read(yolo(tmp_path, "0 .5 .5 .5 .5", data_yaml=broken))


@pytest.mark.parametrize(
    "line", ["0 .1 .1 nan .1 .5 .5 .3 .9", "0 .1 .1 .5 .1 .5 inf", "0 .5 .5 nan .2", "nan .5 .5 .2 .2"]
)
def test_yolo_numbers_that_are_not_finite_make_no_box(tmp_path, line):
    yolo(tmp_path, f"0 .5 .5 .5 .5\n{line}", data_yaml="names: [a]\nkpt_shape: [0, 0]\n")
    assert box_problems(tmp_path) == [None, "broken label line"]


# COCO


def coco(root, *, name="coco.json", **changes):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 10, "height": 8}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 4, 4]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    return put(root, {"a.png": picture(), name: json.dumps(content | changes)})


GOOD = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 4, 4]}


@pytest.mark.parametrize("entry", [None, [], "x", 7, {"image_id": [1]}, {"image_id": True}, {"image_id": {}}, {}])
def test_coco_annotations_that_are_malformed_are_counted(tmp_path, entry):
    coco(tmp_path, annotations=[GOOD, entry])
    assert boxes(tmp_path) == {"a.png": [("cat", 1, 2, 5, 6)]}
    assert problems(tmp_path) == {"coco.json:annotations[1]": "annotation without image_id"}


@pytest.mark.parametrize("entry", [None, [], {"id": 2}, {"file_name": "a.png"}, {"id": [], "file_name": "a.png"}])
def test_coco_images_that_are_malformed_are_counted(tmp_path, entry):
    coco(tmp_path, images=[{"id": 1, "file_name": "a.png"}, entry])
    assert problems(tmp_path) == {"coco.json:images[1]": "image entry without an id or file_name"}


@pytest.mark.parametrize(
    "bbox",
    [None, {}, {"x": 1, "y": 1, "w": 1, "h": 1}, "1234", [1, 2, 3], ["1", 2, 3, 4], [10**400, 1, 1, 1], [True] * 4],
)
def test_coco_boxes_that_are_not_four_numbers_are_counted(tmp_path, bbox):
    coco(tmp_path, annotations=[{"image_id": 1, "category_id": 1, "bbox": bbox}])
    assert box_problems(tmp_path) == ["annotation without a box"]


@pytest.mark.parametrize("category", [None, "1", [1], {}, 2, True])
def test_coco_categories_that_are_unknown_are_counted(tmp_path, category):
    coco(tmp_path, annotations=[GOOD | {"category_id": category}])
    assert box_problems(tmp_path) == ["class number without a name"]


@pytest.mark.parametrize(
    ("width", "size"), [(float("nan"), None), ("64.0", None), (0, None), ([], None), (10.0, (10, 8))]
)
def test_coco_sizes_that_are_not_numbers_are_not_stated(tmp_path, width, size):
    coco(tmp_path, images=[{"id": 1, "file_name": "a.png", "width": width, "height": 8}])
    assert read(tmp_path)["a.png"].size == size


@pytest.mark.parametrize(
    "changes",
    [
        {"annotations": {"1": GOOD}},
        {"images": None},
        {"categories": [None]},
        {"categories": [{"id": [], "name": "a"}]},
        {"categories": [{"id": 1, "name": None}]},
        {"categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]},
    ],
)
def test_coco_that_cannot_be_read_is_refused(tmp_path, changes):
    with pytest.raises(LooplineError, match=r"coco\.json"):
        boxes(coco(tmp_path, **changes))


@pytest.mark.parametrize(("image", "annotation"), [(8, "8"), ("8", 8), ("a", "a")])
def test_coco_ids_may_be_numbers_here_and_texts_there(tmp_path, image, annotation):
    coco(tmp_path, images=[{"id": image, "file_name": "a.png"}], annotations=[GOOD | {"image_id": annotation}])
    assert boxes(tmp_path) == {"a.png": [("cat", 1, 2, 5, 6)]}
    assert problems(tmp_path) == {}


def test_coco_ids_that_differ_only_in_type_are_kept_apart(tmp_path):
    images = [{"id": 8, "file_name": "a.png"}, {"id": "8", "file_name": "b.png"}, {"id": 9.0, "file_name": "c.png"}]
    coco(
        tmp_path,
        images=images,
        annotations=[GOOD | {"image_id": "8"}, GOOD | {"image_id": 9}, GOOD | {"image_id": "x"}],
    )
    put(tmp_path, {f"{name}.png": picture(n) for n, name in enumerate("bc")})
    assert boxes(tmp_path) == {"a.png": [], "b.png": [("cat", 1, 2, 5, 6)], "c.png": [("cat", 1, 2, 5, 6)]}
    assert problems(tmp_path) == {"coco.json:annotations[2]": "annotation without an image"}


@pytest.mark.parametrize(
    ("form", "encoding"),
    [
        *(
            (form, encoding)
            for form in ("coco", "label studio")
            for encoding in ("utf-8-sig", "utf-16", "utf-16-be", "utf-32")
        ),
        *(("cvat", encoding) for encoding in ("utf-8-sig", "utf-16")),
    ],
)
def test_annotations_are_recognised_in_the_encodings_in_which_they_are_read(tmp_path, form, encoding):
    ((name, content),) = annotated("é")[form].items()
    put(tmp_path, {"é.png": picture(), name: content.encode(encoding)})
    assert [box[0] for box in boxes(tmp_path)["é.png"]] == ["cat"]


def test_label_studio_json_min_is_named_in_any_encoding(tmp_path):
    put(
        tmp_path,
        {"min.json": json.dumps([{"image": "a.png", "annotation_id": 3}]).encode("utf-16"), "a.png": picture()},
    )
    with pytest.raises(LooplineError, match=r"min\.json looks like Label Studio's JSON-MIN"):
        read(tmp_path)


def test_coco_images_with_one_id_do_not_share_boxes(tmp_path):
    put(coco(tmp_path, images=[{"id": 1, "file_name": name} for name in ("a.png", "b.png")]), {"b.png": picture(1)})
    assert set(problems(tmp_path).values()) == {"image whose id is not unique", "image without annotation"}


@pytest.mark.parametrize("name", ["a.png", "valid/a.png"])
def test_an_image_that_is_missing_is_not_taken_from_another_split(tmp_path, name):
    coco(tmp_path / "train")
    image = {"id": 1, "file_name": name}
    coco(tmp_path / "valid", images=[image], annotations=[GOOD | {"bbox": [5, 2, 2, 2]}])
    (tmp_path / "valid/a.png").unlink()
    assert list(boxes(tmp_path)) == ["train/a.png"]
    assert problems(tmp_path) == {f"valid/coco.json:{name}": "image file not found"}


def test_every_coco_file_is_read_whatever_another_is_called(tmp_path):
    coco(tmp_path, name="instances_val.json")
    put(coco(tmp_path, name="train.json", images=[{"id": 1, "file_name": "b.png"}]), {"b.png": picture(1)})
    assert {path: sample.split for path, sample in read(tmp_path).items()} == {"a.png": "val", "b.png": "train"}


def test_coco_files_that_say_the_same_again_are_named(tmp_path):
    for name in ("instances_val.json", "person_keypoints_val.json"):
        coco(tmp_path, name=name)
    assert problems(tmp_path) == {"person_keypoints_val.json": "not used in the format COCO"}


# XML


@pytest.mark.parametrize(
    ("encoding", "word"),
    [
        ("GBK", "猫"),
        ("gb2312", "猫"),
        ("Shift_JIS", "猫"),
        ("Big5", "貓"),
        ("EUC-KR", "차"),
        ("windows-1251", "ж"),
        ("ISO-8859-1", "é"),
        ("utf-8", "é"),
        ("utf-16", "é"),
    ],
)
def test_voc_is_read_in_the_encoding_that_it_declares(tmp_path, encoding, word):
    corners = "<xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>6</ymax>"
    text = f"<annotation><object><name>{word}</name><bndbox>{corners}</bndbox></object></annotation>"
    put(tmp_path, {"a.png": picture(), "a.xml": f'<?xml version="1.0" encoding="{encoding}"?>{text}'.encode(encoding)})
    assert boxes(tmp_path) == {"a.png": [(word, 1, 2, 5, 6)]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'<?xml version="1.0" encoding="nope"?><a/>', "XML in the unsupported encoding nope"),
        (b'<?xml version="1.0" encoding="zlib"?><a/>', "XML in the unsupported encoding zlib"),
        (b'<?xml version="1.0" encoding="utf-8"?><a>\xff</a>', "XML that is not valid utf-8"),
        (b"<a>" * 9, "broken XML"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>".encode("utf-16"), "broken XML"),
        (b"", "broken XML"),
    ],
)
def test_xml_that_cannot_be_read_says_why(data, reason):
    with pytest.raises(UnusableXml) as refusal:
        parse(data)
    assert refusal.value.args[0] == reason


# Pascal VOC


def voc(root, *names, **files):
    corners = "<xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>6</ymax>"
    entry = f"<object><name>cat</name><bndbox>{corners}</bndbox></object>"
    for number, name in enumerate(names):
        put(
            root,
            {f"JPEGImages/{name}.png": picture(number), f"Annotations/{name}.xml": f"<annotation>{entry}</annotation>"},
        )
    return put(root, {name.replace("__", "/") + ".txt": content for name, content in files.items()})


@pytest.mark.parametrize("folder", ["SegmentationClass", "SegmentationObject", "voc/SegmentationClassAug"])
def test_voc_masks_are_no_images(tmp_path, folder):
    voc(tmp_path / Path(folder).parent, "a", "b")
    put(tmp_path, {f"{folder}/{name}.png": picture(9) for name in "ab"})
    assert len(boxes(tmp_path)) == 2
    assert problems(tmp_path) == {f"{folder}/{name}.png": "not used in the format Pascal VOC" for name in "ab"}


def test_voc_lists_under_any_name_of_a_split_with_or_without_suffixes(tmp_path):
    voc(
        tmp_path,
        *("a", "b", "c", "d.x", "e", "f g"),
        ImageSets__Main__Train="a\n",
        ImageSets__Main__Validation="b.PNG\n\nf g\n",
        ImageSets__Main__test_set="JPEGImages\\c.png\nd.x\n",
        ImageSets__Main__trainval="a\nb\ne\n",
        ImageSets__Main__cat_test="e 1\n",
    )
    assert {Path(path).stem: sample.split for path, sample in read(tmp_path).items() if not sample.problem} == {
        "a": "train",
        "b": "val",
        "c": "test",
        "d.x": "test",
        "e": "train",
        "f g": "val",
    }


def test_voc_trainval_gives_way_to_train_and_val_whatever_its_folder_is_called(tmp_path):
    root = tmp_path / "VOCtrainval_06-Nov-2007"
    voc(root, "a", "b", ImageSets__Main__train="a", ImageSets__Main__trainval="a\nb", ImageSets__Main__val="b.xml")
    put(tmp_path, {"more/x.html": "x"})
    assert {Path(path).stem: sample.split for path, sample in read(tmp_path).items() if not sample.unused} == {
        "a": "train",
        "b": "val",
    }


def test_voc_lists_may_name_images_and_missing_ones_are_counted(tmp_path):
    voc(
        tmp_path,
        "a",
        "b",
        ImageSets__Main__test="cow.png\ngone\nunannotated.png\n",
        ImageSets__Main__trainval="gone\na\n",
    )
    put(tmp_path, {"Annotations/1.xml": "<annotation><filename>cow.png</filename></annotation>"})
    put(tmp_path, {f"JPEGImages/{name}.png": picture(7) for name in ("cow", "unannotated")})
    samples = read(tmp_path)
    assert (samples["JPEGImages/cow.png"].split, samples["JPEGImages/a.png"].split) == ("test", "train")
    assert problems(tmp_path) == {
        "ImageSets/Main/test.txt:2": "listed image without an annotation",
        "JPEGImages/unannotated.png": "image without annotation",
    }
    assert samples["ImageSets/Main/test.txt:2"].split == "test"


# CVAT


def cvat(root, image="", *, more="", **files):
    head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta/>'
    entry = f'<image id="0" name="pics/a.png" width="10" height="8" subset="Validation">{image}</image>'
    return put(root, {"export/annotations.xml": f"{head}{entry}{more}</annotations>", "pics/a.png": picture()} | files)


@pytest.mark.parametrize(
    ("shape", "corners"),
    [
        ('<box xtl="1" ytl="2" xbr="5.5" ybr="6"', (1, 2, 5.5, 6)),
        ('<box xtl="2" ytl="3" xbr="6" ybr="5" rotation="90.0"', (3, 2, 5, 6)),
        ('<polygon points="1.5,2;5,2;3,6.5"', (1.5, 2, 5, 6.5)),
        ('<ellipse cx="5" cy="4" rx="2" ry="1" rotation="90"', (4, 2, 6, 6)),
        ('<mask left="1" top="2" width="3" height="4" rle="1"', (1, 2, 4, 6)),
    ],
)
def test_cvat_shapes_become_boxes(tmp_path, shape, corners):
    cvat(tmp_path, f'{shape} label="cat"><attribute name="x">1</attribute></{shape[1:].split()[0]}>')
    (box,) = boxes(tmp_path)["pics/a.png"]
    assert box == ("cat", *map(pytest.approx, corners))
    assert read(tmp_path)["pics/a.png"].split == "val"
    assert read(tmp_path)["pics/a.png"].size == (10, 8)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ('<box label="a" xtl="1" ytl="2" xbr="5" ybr="6" outside="1"/>', "shape outside the image"),
        ('<points label="a" points="1,2"/>', "shape that is not a box, a polygon, an ellipse or a mask"),
        ('<box label="a" xtl="x" ytl="2" xbr="5" ybr="6"/>', "annotation without a box"),
        ('<box label="a"/>', "annotation without a box"),
        ('<polygon label="a" points="1;2"/>', "annotation without a box"),
        ('<polygon label="a" points="1,1;nan,3;5,4"/>', "annotation without a box"),
    ],
)
def test_cvat_shapes_that_are_not_boxes_are_counted(tmp_path, shape, reason):
    assert box_problems(cvat(tmp_path, shape)) == [reason]


def test_cvat_reports_tracks_and_images_that_are_not_there(tmp_path):
    track = '<track id="3" label="cat"><box frame="0" xtl="1" ytl="1" xbr="2" ybr="2" outside="0"/></track>'
    put(cvat(tmp_path, '<box label="a"/>', more=f'{track}<image name="gone.png"/>'), {"other.png": picture()})
    assert problems(tmp_path) == {
        "export/annotations.xml:track 3": "video track",
        "export/annotations.xml:gone.png": "image file not found",
        "other.png": "image without annotation",
    }


def test_cvat_tags_are_classes(tmp_path):
    tags = '<image name="b.png"><tag label="x"/><tag label="y"/></image><image name="c.png"/>'
    cvat(tmp_path, '<tag label="cat"/>', more=tags, **{"b.png": picture(1), "c.png": picture(2)})
    samples = read(tmp_path, "classification")
    assert (samples["pics/a.png"].label, samples["c.png"].label) == ("cat", None)
    assert samples["b.png"].problem == "image with several classes"
    with pytest.raises(LooplineError, match="CVAT XML with tags, which is for classification"):
        read(tmp_path, "detection")


# Label Studio


def studio(root, *entries, **files):
    return put(root, {"project-1.json": json.dumps(list(entries)), "pics/a.png": picture()} | files)


@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/7/1f2e3d4c-a.png",
        "/data/local-files/?d=pics/a.png",
        "s3://bucket/pics/a.png",
        "http://x.org/a.png?v=1",
        "a.png",
        "pics\\a.png",
        "upload/1f2e3d4c-a.png",
    ],
)
def test_label_studio_images_are_found_by_their_addresses(tmp_path, address):
    (box,) = boxes(studio(tmp_path, rectangle(address)))["pics/a.png"]
    assert box == ("cat", *map(pytest.approx, (1, 2, 5, 6)))


def choice(label, **data):
    return {"data": data, "annotations": [{"result": [{"type": "choices", "value": {"choices": [label]}}]}]}


def test_label_studio_choices_are_classes_of_images_and_texts(tmp_path):
    studio(tmp_path / "images", choice("cat", image="a.png"))
    put(
        tmp_path / "texts",
        {"train.json": json.dumps([choice("pos", text="good", id="7"), choice("neg", review="bad")])},
    )
    assert read(tmp_path / "images", "classification")["pics/a.png"].label == "cat"
    assert [(s.text, s.label, s.split) for s in formats.read(tmp_path / "texts", "text")] == [
        ("good", "pos", "train"),
        ("bad", "neg", "train"),
    ]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"id": "abc", "text": ""}, "empty text"),
        ({"author": "bob", "text": None}, "task without one text"),
        ({"author": "bob", "text": 5}, "task without one text"),
        ({"author": "bob", "review": None}, "task without one text"),
    ],
)
def test_label_studio_texts_that_are_missing_are_not_taken_from_other_fields(tmp_path, data, problem):
    put(tmp_path, {"a.json": json.dumps([choice("pos", **data)])})
    cleaned = clean([("a", formats.read(tmp_path, "text"))], task="text", split=SPLIT)
    assert (cleaned.samples, cleaned.aside.counts) == ([], {problem: 1})


def test_label_studio_reports_what_it_cannot_use(tmp_path):
    turned = rectangle("a.png")
    turned["annotations"][0]["result"][0]["image_rotation"] = 90
    resized = rectangle("d.png")
    resized["annotations"][0]["result"] += rectangle("d.png")["annotations"][0]["result"]
    resized["annotations"][0]["result"][1] |= {"original_width": 99}
    skipped = rectangle("b.png", annotations=[{"was_cancelled": True, "result": []}])
    entries = [turned, skipped, rectangle("gone.png"), {"image": "c.png", "label": []}, None, rectangle(7), resized]
    studio(tmp_path, *entries, **{f"{name}.png": picture() for name in "bcd"})
    assert box_problems(tmp_path) == ["region drawn while the image was turned"]
    assert problems(tmp_path) == {
        "b.png": "task without annotation",
        "c.png": "image without annotation",
        "project-1.json:tasks[2]": "image file not found",
        "project-1.json:tasks[3]": "task that is not from a JSON export",
        "project-1.json:tasks[4]": "task that is not from a JSON export",
        "project-1.json:tasks[5]": "task without one image",
        "project-1.json:tasks[6]": "regions drawn on images of several sizes",
    }


def test_label_studio_annotators_who_disagree_are_counted(tmp_path):
    near, far = rectangle("a.png")["annotations"][0], rectangle("a.png")["annotations"][0]
    near["result"][0]["value"]["x"] = 12
    far["result"][0]["value"]["x"] = 60
    first = rectangle("a.png")["annotations"][0]
    assert list(boxes(studio(tmp_path / "agree", rectangle("a.png", annotations=[first, near])))) == ["pics/a.png"]
    studio(tmp_path / "not", rectangle("a.png", annotations=[first, far]))
    assert problems(tmp_path / "not")["project-1.json:tasks[0]"] == "annotators disagree"


@pytest.mark.parametrize("task", ["detection", "classification"])
def test_label_studio_json_min_is_named(tmp_path, task):
    put(tmp_path, {"min.json": json.dumps([{"image": "a.png", "label": [], "annotation_id": 3}]), "a.png": picture()})
    with pytest.raises(LooplineError, match=r"min\.json looks like Label Studio's JSON-MIN.*export as JSON"):
        read(tmp_path, task)


# IDX


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            struct.pack(">HBB3I", 0, 8, 3, 1, 1, 1) + b"ab",
            struct.pack(">HBBI", 0, 8, 1, 1) + b"a",
            "holds more than its header states",
        ),
        (struct.pack(">HBB3I", 0, 8, 3, 1, 2**31, 2**31), struct.pack(">HBBI", 0, 8, 1, 1) + b"a", "images of"),
        (struct.pack(">HBB3I", 0, 8, 3, 1, 1, 1) + b"a", struct.pack(">HBB2I", 0, 8, 2, 1, 1) + b"a", "not a pair"),
        (struct.pack(">HBB3I", 0, 8, 3, 1, 0, 1), struct.pack(">HBBI", 0, 8, 1, 1) + b"a", "images of"),
    ],
)
def test_idx_headers_that_do_not_fit_the_file_are_refused(tmp_path, images, labels, message):
    put(tmp_path, {"x-images-idx3-ubyte": images, "x-labels-idx1-ubyte": labels})
    with pytest.raises(LooplineError, match=message):
        list(formats.read(tmp_path, "classification"))
