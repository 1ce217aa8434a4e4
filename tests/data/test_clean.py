"""Cleaning: nothing is lost without a count, nothing moves between splits, each fault has its reason."""

import io
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loopline import tasks
from loopline.data import ingest_report
from loopline.data.clean import EXAMPLES, MAX_CHARACTERS, assign, clean
from loopline.data.raw import RawBox, RawSample
from loopline.errors import LooplineError
from loopline.settings import SampleGroup, SplitSettings

SPLIT = SplitSettings(seed=0, val=0.2, test=0.2)
CLASSES = tasks.find("classification")


def picture(*, shade=0, form="PNG", mode="RGB", size=(10, 8), **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade % 256, shade // 256, 90)).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def say(text, label="a", *, path="p", split=None):
    return RawSample(path, None, text, label, None, split)


def show(image, label="a", *, path="p", split=None):
    return RawSample(path, image, None, label, None, split)


def draw(*boxes, image=None, path="p", split=None, size=None):
    return RawSample(path, image or picture(), None, None, boxes, split, size)


def texts(*samples, split=SPLIT):
    return clean([("set", samples)], task="text", split=split)


def images(*samples):
    return clean([("set", samples)], task="classification", split=SPLIT)


def scenes(*samples):
    return clean([("set", samples)], task="detection", split=SPLIT)


# Splits

CONTENT = st.text(alphabet="abcdef", max_size=3)
RAW_TEXT = st.builds(
    RawSample,
    path=st.just("p"),
    image=st.none(),
    text=CONTENT,
    label=st.sampled_from(["a", "b", "", None]),
    boxes=st.none(),
    split=st.sampled_from([None, "train", "val", "test"]),
    problem=st.sampled_from([None, None, None, "broken row"]),
    group=st.sampled_from([None, "x", "y", "z"]),
)


def splits(sources, split=SPLIT):
    return {sample.id: sample.split for sample in clean(sources, task="text", split=split).samples}


GROUPED = SplitSettings(seed=0, val=0.3, test=0.3, group=SampleGroup(column="video"))


@given(
    first=st.lists(RAW_TEXT, max_size=30),
    batch=st.lists(RAW_TEXT, max_size=30),
    split=st.sampled_from([SPLIT, GROUPED]),
)
def test_a_new_batch_moves_no_sample(first, batch, split):
    before = splits([("set", first)], split)
    after = splits([("set", first), ("v2", batch)], split)
    assert {key: after[key] for key in before if key in after} == {k: v for k, v in before.items() if k in after}
    labels = {(s.text.strip(), s.label) for s in first + batch if s.text.strip() and s.label and not s.problem}
    contradicted = sum(sum(text == other for other, _ in labels) > 1 for text in {text for text, _ in labels})
    assert len(before.keys() - after.keys()) <= contradicted


@given(first=st.lists(CONTENT), more=st.lists(CONTENT), seed=st.integers(0, 9))
def test_without_published_splits_no_other_sample_matters(first, more, seed):
    chosen = SplitSettings(seed=seed, val=0.3, test=0.3)
    few, all_ = texts(*map(say, first), split=chosen), texts(*map(say, more + first), split=chosen)
    after = {sample.id: sample.split for sample in all_.samples}
    assert all(after[sample.id] == sample.split for sample in few.samples)


def test_hashing_gives_the_shares_that_were_asked_for():
    kept = texts(*(say(f"text {number}") for number in range(5000))).samples
    shares = {split: sum(s.split == split for s in kept) / 5000 for split in ("train", "val", "test")}
    assert shares == pytest.approx({"train": 0.6, "val": 0.2, "test": 0.2}, abs=0.02)


@given(st.text(), st.sampled_from(["val", "test"]))
def test_a_published_val_or_test_is_kept(name, published):
    assert assign(name, published, {"train", published}, SPLIT) == published


@given(st.text())
def test_the_hash_takes_only_what_is_not_published(name):
    assert assign(name, "train", {"train", "val", "test"}, SPLIT) == "train"
    assert assign(name, "train", {"train", "test"}, SPLIT) in ("train", "val")
    assert assign(name, "train", {"train", "val"}, SPLIT) in ("train", "test")
    assert assign(name, None, {"train", "val", "test"}, SPLIT) == "train"  # no publisher called it val or test


def test_a_published_test_without_labels_is_counted_and_another_is_drawn():
    """Competitions publish their data like this."""
    rows = [say(f"train {number}", split="train") for number in range(500)]
    cleaned = texts(*rows, *(say(f"test {number}", None, split="test") for number in range(50)))
    assert cleaned.aside.counts == {"no label": 50}
    drawn = Counter(sample.split for sample in cleaned.samples)
    assert sum(drawn.values()) == 500 and 70 < drawn["test"] < 130 and 70 < drawn["val"] < 130


def test_published_train_gives_the_share_of_val_that_was_asked_for():
    rows = [say(f"text {n}", split="train") for n in range(3000)] + [say("t", split="test")]
    assert sum(s.split == "val" for s in texts(*rows).samples) / 3000 == pytest.approx(0.2, abs=0.02)


def test_another_seed_gives_other_splits():
    rows = [say(f"text {number}") for number in range(100)]
    first, second = (texts(*rows, split=replace_seed(seed)).samples for seed in (0, 1))
    assert [s.split for s in first] != [s.split for s in second]


def replace_seed(seed):
    return SPLIT.model_copy(update={"seed": seed})


# Nothing is lost

WRONG = st.sampled_from([b"", b"no image", picture()[:40], picture(form="JPEG")[:-200]])
RAW_IMAGE = st.builds(
    RawSample,
    path=st.just("p"),
    image=WRONG | st.builds(picture, shade=st.integers(0, 3)),
    text=st.none(),
    label=st.sampled_from(["a", "b", " ", None]),
    boxes=st.none(),
    split=st.sampled_from([None, "train", "test"]),
)
CORNER = st.floats(-5, 15) | st.sampled_from([math.nan, math.inf, 0.0, 10.0])
RAW_BOX = st.builds(
    RawBox, st.sampled_from(["cat", "dog", ""]), CORNER, CORNER, CORNER, CORNER, st.sampled_from([None, None, "crowd"])
)
RAW_SCENE = st.builds(
    draw,
    RAW_BOX,
    RAW_BOX,
    image=WRONG | st.builds(picture, shade=st.integers(0, 3)),
    split=st.sampled_from([None, "train", "test"]),
    size=st.sampled_from([None, (10, 8), (8, 10)]),
)


@given(st.lists(RAW_TEXT))
def test_no_text_is_lost_without_a_count(raw):
    cleaned = texts(*raw)
    assert len(raw) == cleaned.seen == len(cleaned.samples) + cleaned.aside.total


@given(st.lists(RAW_IMAGE, max_size=12))
def test_no_image_is_lost_without_a_count(raw):
    cleaned = images(*raw)
    assert len(raw) == cleaned.seen == len(cleaned.samples) + cleaned.aside.total
    assert len({sample.id for sample in cleaned.samples}) == len(cleaned.samples)


@given(st.lists(RAW_SCENE, max_size=8))
def test_no_box_is_lost_without_a_count_and_kept_boxes_are_inside(raw):
    cleaned = scenes(*raw)
    assert len(raw) == cleaned.seen == len(cleaned.samples) + cleaned.aside.total
    kept = [box for sample in cleaned.samples for box in sample.boxes]
    assert all(0 <= b.x1 < b.x2 <= 10 and 0 <= b.y1 < b.y2 <= 8 and b.label for b in kept)
    assert cleaned.boxes_seen == 2 * len(raw)
    assert len(kept) + cleaned.boxes_aside.total <= cleaned.boxes_seen
    if not cleaned.aside.total:
        assert len(kept) + cleaned.boxes_aside.total == cleaned.boxes_seen


# Copies


def test_of_copies_in_one_set_the_test_copy_wins():
    rows = [say("x", split=split, path=split) for split in ("train", "test", "val")]
    for order in (rows, rows[::-1]):
        cleaned = texts(*order, say("y", split="train"))
        assert {s.text: s.split for s in cleaned.samples}["x"] == "test"
        assert cleaned.aside.counts == {"copy of another sample": 2}


def test_a_copy_in_a_later_batch_changes_nothing():
    first, batch = [say("x", split="train"), say("y", split="test"), say("z", split="val")], [say("x", split="test")]
    cleaned = clean([("set", first), ("v2", batch)], task="text", split=SPLIT)
    assert [(s.text, s.source, s.split) for s in cleaned.samples if s.text == "x"] == [("x", "set", "train")]


def test_copies_that_disagree_are_all_set_aside():
    cleaned = images(show(picture(), "a", path="1"), show(picture(), "b", path="2"), show(picture(), "a", path="3"))
    assert cleaned.samples == []
    assert cleaned.aside.counts == {"copies with different labels": 3}
    assert cleaned.aside.examples["copies with different labels"][1] == "2 (labels a, b; first copy 1)"


def test_scenes_that_are_copies_must_have_the_same_boxes_in_any_order():
    cat, dog = RawBox("cat", 0, 0, 5, 5), RawBox("dog", 1, 1, 6, 6)
    assert scenes(draw(cat, dog), draw(dog, cat)).aside.counts == {"copy of another sample": 1}
    assert scenes(draw(cat, dog), draw(dog)).aside.counts == {"copies with different labels": 2}


def test_surrounding_white_space_makes_no_difference():
    assert [s.text for s in texts(say(" x \n"), say("x")).samples] == ["x"]


# Reasons


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (say(""), "empty text"),
        (say(" \t\u0085\u2028"), "empty text"),
        (say("x" * (MAX_CHARACTERS + 1)), "text too long"),
        (say("\ud800"), "text with halves of characters"),
        (say("x", label=None), "no label"),
        (say("x", label="  "), "no label"),
        (replace(say("x"), problem="broken row"), "broken row"),
    ],
)
def test_a_text_is_set_aside_with_its_reason(raw, reason):
    assert texts(raw).aside.counts == {reason: 1}


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "empty file"),
        (b"hello", "unreadable image"),
        (picture(form="JPEG", size=(99, 99))[:-300], "unreadable image"),
        (picture(size=(8000, 8000), mode="1"), "unreadable image"),
        (bytes(64 * 2**20 + 1), "file over 64 MB"),
    ],
    ids=["empty", "no image", "truncated", "too many pixels", "too many bytes"],
)
def test_an_image_is_set_aside_with_its_reason(image, reason):
    cleaned = images(show(image, path="a.jpg"))
    assert cleaned.aside.counts == {reason: 1}
    assert cleaned.aside.examples[reason][0].startswith("a.jpg")


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (picture(form="PNG"), (10, 8)),
        (picture(mode="L"), (10, 8)),
        (picture(mode="I;16"), (10, 8)),
        (picture(mode="CMYK", form="JPEG"), (10, 8)),
        (picture(form="MPO", save_all=True, append_images=[Image.new("RGB", (5, 5))]), (10, 8)),
        (picture(form="JPEG", exif=(turned := Image.Exif()).__setitem__(0x0112, 6) or turned), (8, 10)),
    ],
    ids=["PNG bytes in a .jpg", "grey", "16 bit", "CMYK", "a phone's MPO", "turned"],
)
def test_unusual_images_are_kept_as_they_came_with_their_upright_size(image, size):
    (sample,) = images(show(image, path="a.jpg")).samples
    assert (sample.width, sample.height) == size
    assert sample.image == image


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (RawBox("cat", 4, 4, 4, 4), "box without area"),
        (RawBox("cat", 4, 4, 2, 6), "box without area"),
        (RawBox("cat", 10, 0, 12, 5), "box outside its image"),
        (RawBox("cat", 0, 0, math.nan, 5), "box with a corner that is not a number"),
        (RawBox(" ", 0, 0, 5, 5), "box without a class"),
        (RawBox("cat", 0, 0, 5, 5, "box around a crowd"), "box around a crowd"),
        (RawBox("dog", 1, 1, 6, 6), "copy of another box"),
    ],
)
def test_a_box_is_set_aside_apart_from_its_sample(box, reason):
    cleaned = scenes(draw(RawBox("dog", 1, 1, 6, 6), box))
    assert [b.label for b in cleaned.samples[0].boxes] == ["dog"]
    assert cleaned.boxes_aside.counts == {reason: 1}
    assert cleaned.aside.total == 0


def test_a_box_that_sticks_out_is_clipped_and_counted():
    cleaned = scenes(draw(RawBox("cat", -3, 2, 6, 99), RawBox("dog", 0, 0, 10.2, 8)))
    assert [(b.x1, b.y1, b.x2, b.y2) for b in cleaned.samples[0].boxes] == [(0, 2, 6, 8), (0, 0, 10, 8)]
    assert cleaned.boxes_clipped == 1


def test_an_image_without_objects_is_kept_and_one_that_lost_all_its_boxes_is_not():
    cleaned = scenes(draw(image=picture(shade=1)), draw(RawBox("cat", 4, 4, 4, 4)))
    assert [s.boxes for s in cleaned.samples] == [()]
    assert cleaned.aside.counts == {"no usable box left": 1}


def test_boxes_drawn_for_another_size_are_not_trusted():
    box = RawBox("cat", 0, 0, 5, 5)
    cleaned = scenes(draw(box, size=(640, 480)), draw(box, image=picture(shade=1), size=(10, 8)))
    assert cleaned.aside.counts == {"boxes drawn for another size": 1}
    assert len(cleaned.samples) == 1


def test_a_file_name_with_invalid_characters_stays_readable():
    odd = b"caf\xe9/1.png".decode(errors="surrogateescape")
    cleaned = images(show(picture(), odd[:4], path=odd), show(b"", path=odd))
    assert (cleaned.samples[0].path, cleaned.samples[0].label) == (r"caf\udce9/1.png", r"caf\udce9")
    assert cleaned.aside.examples == {"empty file": [r"caf\udce9/1.png"]}


def test_names_with_invalid_characters_stay_different():
    labels = [name.decode(errors="surrogateescape") for name in (b"caf\xe9", b"caf\xe8")]
    cleaned = images(*(show(picture(shade=shade), label) for shade, label in enumerate(labels)))
    assert len({sample.label for sample in cleaned.samples}) == 2


def test_only_a_few_examples_are_kept():
    cleaned = texts(*(say("", path=f"r.csv:{number}") for number in range(9)))
    assert cleaned.aside.counts == {"empty text": 9}
    assert cleaned.aside.examples == {"empty text": [f"r.csv:{number}" for number in range(EXAMPLES)]}


# The report


def test_classes_are_in_natural_order():
    cleaned = texts(*(say(f"{name}{n}", name) for name in ("10", "2", "b10", "B2", "a") for n in range(3)))
    assert ingest_report.labels(cleaned.samples) == ("2", "10", "a", "B2", "b10")


def test_the_summary_adds_up():
    box = RawBox("cat", 0, 0, 5, 5)
    cleaned = scenes(
        draw(box, RawBox("dog", 1, 1, 1, 1), split="train"),
        draw(box, box, image=b"no", split="train"),
        draw(image=picture(shade=1), split="test"),
    )
    report = ingest_report.summary(cleaned, tasks.find("detection"))
    assert (report["seen"], report["samples"], report["sources"]) == (3, 2, {"set": 2})
    assert report["classes"]["cat"]["train"] + report["classes"]["cat"]["val"] == 1
    boxes = report["boxes"]
    assert boxes["seen"] == 4
    assert (boxes["kept"], boxes["in_samples_set_aside"], boxes["images_without"]) == (1, 2, 1)
    assert boxes["set_aside"] == {"box without area": {"count": 1, "examples": ["p (dog (1, 1, 1, 1))"]}}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "There are no samples."),
        ([say("")], "No sample is left."),
        ([say("x", split="train")], "There is only one class: a. A classifier needs two."),
        ([say("x", split="train")], "Split test is empty."),
        (
            [say("x", split="train"), say("y", "b", split="test"), say("z", split="val")],
            "Class 'b' has no training sample, only 1 in test.",
        ),
    ],
)
def test_obstacles_are_named(rows, message):
    assert message in ingest_report.obstacles(texts(*rows), tasks.find("text"))


def test_a_sound_set_has_no_obstacles():
    sound = texts(*(say(f"{label} {n}", label) for label in "ab" for n in range(50)))
    assert ingest_report.obstacles(sound, tasks.find("text")) == []


# Annotators who draw the same


def box_at(x, *, label="cat", width=100):
    return RawBox(label, x, 0, x + width, 100)


@pytest.mark.parametrize("share", [0.94, 0.88, 0.8, 0.52])
def test_copies_whose_boxes_overlap_agree(share):
    shift = 100 * (1 - share) / (1 + share)  # two boxes of width 100 then overlap by `share`
    image = picture(size=(300, 100))
    first, second = (draw(box_at(x), box_at(x + 120), image=image, path=str(x)) for x in (0, shift))
    cleaned = scenes(first, second)
    assert [box.x1 for box in cleaned.samples[0].boxes] == [0, 120]
    assert cleaned.aside.counts == {"copy of another sample": 1}


@pytest.mark.parametrize(
    "boxes",
    [
        (box_at(40), box_at(160)),  # overlap .43
        (box_at(0, label="dog"), box_at(120)),
        (box_at(0),),
        (box_at(0), box_at(2)),  # two boxes around the first object, none around the second
        (),
    ],
)
def test_copies_whose_boxes_differ_are_set_aside(boxes):
    image = picture(size=(300, 100))
    cleaned = scenes(draw(box_at(0), box_at(120), image=image), draw(*boxes, image=image))
    assert cleaned.aside.counts == {"copies with different labels": 2}


def test_the_reasons_cover_samples_and_boxes():
    line = RawBox("", 0, 0, 0, 0, problem="broken label line", detail="a.txt:3: 0 .5")
    cleaned = scenes(draw(line, image=picture()))
    assert ingest_report.reasons(cleaned) == [
        "1 x no usable box left, e.g. p (broken label line)",
        "1 x box: broken label line, e.g. p (a.txt:3: 0 .5)",
    ]


def test_files_that_are_not_samples_are_named_and_not_counted():
    rest = RawSample("b.cache", None, None, None, None, None, problem="not used", unused=True)
    cleaned = images(show(picture()), rest)
    assert ingest_report.summary(cleaned, CLASSES)["left_out"] == {"not used": {"count": 1, "examples": ["b.cache"]}}
    assert (cleaned.seen, cleaned.aside.total) == (1, 0)


def test_names_with_halves_of_characters_are_written(tmp_path):
    from loopline.data import manifest

    cleaned = scenes(draw(RawBox("\ud800", 0, 0, 5, 5), path="\ud800"), draw(RawBox("\ud800", 0, 0, -5, 5), image=b"x"))
    manifest.write(
        tmp_path / "m.parquet", cleaned.samples, task="detection", labels=ingest_report.labels(cleaned.samples)
    )
    json.dumps(ingest_report.summary(cleaned, tasks.find("detection"))).encode()
    assert manifest.labels(tmp_path / "m.parquet") == (r"\ud800",)


@pytest.mark.parametrize(("x", "refused"), [(4, False), (60, True)])
def test_a_batch_with_another_annotators_boxes_is_judged_alike(x, refused):
    from loopline.data.versions import _refuse_contradictions

    image = picture(size=(300, 100))
    dataset = scenes(draw(box_at(0), image=image)).samples
    batch = scenes(draw(box_at(x), image=image)).samples
    with pytest.raises(LooplineError, match="with another label" if refused else "already has all its 1 samples"):
        _refuse_contradictions(batch, dataset, Path("batch"))


# Groups


@given(st.lists(RAW_TEXT, max_size=30), st.lists(RAW_TEXT, max_size=30))
def test_without_published_splits_a_group_is_in_one_split_whichever_source_it_came_with(first, batch):
    own, added = ([replace(raw, split=None) for raw in part] for part in (first, batch))
    cleaned = clean([("set", own), ("v2", added)], task="text", split=GROUPED)
    assert cleaned.grouped.torn == []
    assert cleaned.grouped.groups <= 3


def frames(videos, count=12):
    return [
        RawSample(f"clip{video:02d}/frame_{frame}.png", picture(shade=video * count + frame), None, label, None, None)
        for video in range(videos)
        for frame in range(count)
        for label in ["ab"[video % 2]]
    ]


def test_frames_of_one_video_stay_together_by_a_pattern_of_their_path():
    split = SplitSettings(seed=0, val=0.2, test=0.2, group=SampleGroup(path=r"^(clip\d+)/"))
    cleaned = clean([("set", frames(40))], task="classification", split=split)
    by_video = {}
    for sample in cleaned.samples:
        by_video.setdefault(sample.path[:6], set()).add(sample.split)
    assert {len(names) for names in by_video.values()} == {1}
    assert set.union(*by_video.values()) == {"train", "val", "test"}
    assert ingest_report.summary(cleaned, CLASSES)["groups"] == {
        "count": 40,
        "samples_without": 0,
        "torn": {"count": 0, "examples": []},
    }
    alone = clean([("set", frames(40))], task="classification", split=SPLIT)
    assert any(sample.split != cleaned.samples[row].split for row, sample in enumerate(alone.samples))
    assert "groups" not in ingest_report.summary(alone, CLASSES)


def test_a_published_split_is_kept_and_a_group_that_it_tears_apart_is_named():
    published = [replace(raw, split="test" if "_3." in raw.path else "train") for raw in frames(2)]
    split = SplitSettings(seed=0, val=0.0, test=0.2, group=SampleGroup(path=r"^(clip\d+)/"))
    cleaned = clean([("set", published)], task="classification", split=split)
    assert all((sample.split == "test") == ("_3." in sample.path) for sample in cleaned.samples)
    assert ingest_report.summary(cleaned, CLASSES)["groups"]["torn"] == {"count": 2, "examples": ["clip00", "clip01"]}


def test_a_published_split_of_a_batch_does_not_divide_a_group():
    split = SplitSettings(seed=0, val=0.0, test=0.99, group=SampleGroup(path=r"^(clip\d+)/"))
    samples = frames(6)
    first = [replace(raw, split="test" if number == 0 else "train") for number, raw in enumerate(samples[:60])]
    cleaned = clean([("set", first), ("v2", samples[60:])], task="classification", split=split)
    # The dataset publishes a test split, so its groups are in training; clip05 is the batch's own, and goes by its hash.
    by_video = {}
    for sample in cleaned.samples[1:]:
        by_video.setdefault(sample.path[:6], set()).add(sample.split)
    assert by_video == {f"clip{video:02d}": {"train"} for video in range(5)} | {"clip05": {"test"}}
    late = replace(samples[71], path="clip02/late.png")
    cleaned = clean([("set", first), ("v2", [late])], task="classification", split=split)
    assert cleaned.samples[-1].split == "train"


def test_a_pattern_that_groups_nothing_is_an_obstacle():
    split = SplitSettings(seed=0, val=0.2, test=0.2, group=SampleGroup(path=r"^video(\d+)/"))
    cleaned = clean([("set", frames(4))], task="classification", split=split)
    assert ingest_report.obstacles(cleaned, CLASSES) == [
        "split.group matches no sample, such as clip00/frame_0.png: correct its path or column."
    ]


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({}, "either path or column"),
        ({"path": "(a)", "column": "b"}, "either path or column"),
        ({"path": "(a"}, "not a regular expression"),
        ({"path": "a"}, "captures nothing"),
        ({"column": ""}, "at least 1 character"),
        ({"pattern": "(a)"}, "Extra inputs"),
    ],
)
def test_an_invalid_group_setting_is_refused(group, words):
    with pytest.raises(ValueError, match=words):
        SampleGroup(**group)
