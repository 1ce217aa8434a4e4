"""Choosing samples to label, trusting labels, and exporting and importing them."""

import csv
import gzip
import hashlib
import io
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import journals
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from loopline.data import clean, formats, manifest
from loopline.errors import LooplineError
from loopline.journal import annotations, label_files, quality, segments
from loopline.journal.collector import Bounds, Collector
from loopline.journal.labels import Trust, checked, worth
from loopline.journal.reader import Entry, JournalReader
from loopline.settings import SplitSettings


def entry(identity="a", *, predicted="bright", probability=0.9, label=None, source="anna", reason="sampled", **more):
    prediction = {"label": predicted, "probability": probability}
    fields = {"input": journals.png(), "signals": {"brightness": 1.0}, "prediction": prediction} | more
    common = {"time": 0.0, "model": "classifier", "version": "v1", "status": 200, "reason": reason}
    return Entry(id=identity, label=label, source=source, **common, **fields)


# Choosing samples


def test_uncertain_drifted_and_distant_samples_come_first():
    pool = [entry(str(k), signals={"brightness": float(k % 3)}) for k in range(50)]
    pool += [
        entry("unsure", probability=0.51),
        entry("strange", reason="drifted"),
        entry("far", signals={"brightness": 99.0}),
    ]
    assert {e.id for e in worth(pool, 6)} >= {"unsure", "strange", "far"}


def test_no_predicted_class_is_left_out():
    pool = [entry(str(k), probability=0.6) for k in range(90)] + [entry("rare", predicted="dark", probability=0.99)]
    assert "rare" in {e.id for e in worth(pool, 2)}
    pool = [entry(f"{k}{name}", predicted=name) for k in range(9) for name in "abc"]
    chosen = [e.prediction["label"] for e in worth(pool, 12)]
    assert {name: chosen.count(name) for name in "abc"} == {"a": 4, "b": 4, "c": 4}


def test_a_sample_with_a_label_or_without_input_is_not_chosen():
    assert worth([entry(label="bright"), entry(input=None)], 5) == []
    assert worth([], 5) == []
    assert len(worth([entry("a"), entry("b")], 5)) == 2


# Trusting labels


def test_disputed_labels_unknown_classes_and_missing_inputs_are_left_out():
    entries = [
        entry("a", label="bright"),
        entry("b", label="dark"),
        entry("c", label="purple"),
        entry("d", label="dark", input=None),
    ]
    result = checked(entries, {"b": {"anna": "dark", "ben": "bright"}}, Trust(known=("bright", "dark")))
    assert [e.id for e in result.entries] == ["a"]
    assert result.refused == {"sources do not agree": 1, "unknown class 'purple'": 1, "its input was not kept": 1}
    assert len(checked(entries, {}, Trust()).entries) == 3


@pytest.mark.parametrize(
    ("mallory", "others", "kept"), [(90, 10, 15), (10, 90, 10), (60, 40, 60), (61, 39, 58), (99, 1, 99)]
)
def test_one_of_several_sources_cannot_decide_alone(mallory, others, kept):
    entries = [entry(f"m{k}", label="dark", source="mallory") for k in range(mallory)]
    entries += [entry(f"o{k}", label="bright", source=f"o{k % 5}") for k in range(others)]
    accepted = checked(entries, {}, Trust(max_share=0.6)).entries
    assert sum(e.source == "mallory" for e in accepted) == kept
    assert sum(e.source != "mallory" for e in accepted) == others
    assert kept / len(accepted) <= 0.6 or others == 1, "one stray label does not discard the others"


def test_the_share_of_a_single_source_is_not_bounded():
    assert len(checked([entry(str(k), label="dark") for k in range(9)], {}, Trust()).entries) == 9


# Quality


def test_the_quality_of_a_class_is_one_or_zero():
    assert quality.of({"label": "a", "probability": 1}, "a") == 1
    assert quality.of({"label": "a", "probability": 1}, "b") == 0


def test_the_quality_of_boxes_is_the_f1_score():
    box = journals.box
    assert quality.of({"boxes": []}, []) == 1
    assert quality.of({"boxes": [box()]}, []) == 0
    assert quality.of({"boxes": []}, [box()]) == 0
    assert quality.of({"boxes": [box()]}, [box(x1=1)]) == 1
    assert quality.of({"boxes": [box()]}, [box(x1=8, x2=18)]) == 0
    assert quality.of({"boxes": [box()]}, [box(label="moon")]) == 0
    assert quality.of({"boxes": [box(), box(score=0.5)]}, [box()]) == pytest.approx(2 / 3)
    assert quality.of({"boxes": [box()]}, [box(), box(x1=50, x2=60)]) == pytest.approx(2 / 3)


def test_the_quality_of_boxes_is_that_of_the_evaluation():
    from loopline.tasks.detection import task as detection
    from loopline.tasks.spec import ImageInput, ModelSpec

    rng, spec = (
        np.random.default_rng(0),
        ModelSpec(
            task="detection", labels=("a", "b"), image=ImageInput(height=64, width=64, channels=3), score_threshold=0.3
        ),
    )

    def boxes(count):
        low = rng.integers(0, 40, (count, 2))
        return np.hstack([low, low + rng.integers(5, 24, (count, 2))]).astype(float)

    for _ in range(50):
        truth = np.hstack([rng.integers(0, 2, (4, 1)), boxes(4)])
        near = truth[rng.integers(0, 4, 6), 1:] + rng.integers(-4, 5, (6, 4))
        outputs = {
            "boxes": near[None],
            "scores": np.sort(rng.random((1, 6)))[:, ::-1],
            "classes": rng.integers(0, 2, (1, 6)),
        }

        class Split:
            targets = [truth]  # noqa: RUF012
            sizes = np.array([[64, 64]])

        prediction = detection.TASK.answers(outputs, spec, Split.sizes)[0]
        label = [
            {"label": spec.labels[int(row[0])], **dict(zip(("x1", "y1", "x2", "y2"), row[1:], strict=True))}
            for row in truth
        ]
        assert quality.of(prediction, label) == pytest.approx(
            float(detection.TASK.quality(outputs, Split, spec)[0]), abs=1e-9
        )


# Export and import


def test_an_export_has_images_a_table_and_tasks_for_label_studio(tmp_path):
    label_files.export([entry("a/1"), entry("b")], tmp_path / "out", ("bright", 'd"ark'))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/labels.csv").read_text())))
    assert [(row["id"], row["predicted"], row["label"]) for row in rows] == [("a/1", "bright", ""), ("b", "bright", "")]
    assert (tmp_path / "out" / rows[0]["sample"]).read_bytes() == journals.png()
    task = json.loads((tmp_path / "out/tasks.json").read_text())[0]
    assert task["data"]["id"] == "a/1"
    assert task["predictions"][0]["result"][0]["value"] == {"choices": ["bright"]}
    config = (tmp_path / "out/label-config.xml").read_text()
    assert "<Choice value='d\"ark'/>" in config
    assert '<Image name="sample" value="$image"/>' in config
    with pytest.raises(LooplineError, match="not empty"):
        label_files.export([entry()], tmp_path / "out", ())


def test_a_filled_in_table_is_read_without_its_empty_rows(tmp_path):
    for delimiter in ",;\t":
        (tmp_path / "l.csv").write_text("\ufeffid,sample,label\na,x,bright\nb,y,\n".replace(",", delimiter))
        returned = annotations.read(tmp_path / "l.csv")
        assert (returned.labels, returned.passed_over) == ({"a": ["bright"]}, {"no label": 1})
    (tmp_path / "l.csv").write_bytes("ID;Label\na;für\n".encode("cp1252"))  # the encoding that Excel writes
    assert annotations.read(tmp_path / "l.csv").labels == {"a": ["für"]}
    for text, message in {
        "name,label\na,b\n": "the columns id and label are needed",
        "id,label\n,b\n": "line 2: no id",
        'id,label\na,"b\nc,d\n': "line 2: quote that is not closed",
        "": "id and label are needed",
    }.items():
        (tmp_path / "l.csv").write_text(text)
        with pytest.raises(LooplineError, match=message):
            annotations.read(tmp_path / "l.csv")
    with pytest.raises(LooplineError, match="cannot be read"):
        annotations.read(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"PK\3\4\x14\0\6\0" + b"\0" * 100, "is an Excel workbook or a zip archive: save the sheet as CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 100, "is an Excel workbook: save the sheet as CSV UTF-8"),
        (gzip.compress(b"id,label\na,b\n", mtime=0), "is packed with gzip: unpack it"),
        (b"\1\2\xff" * 50_000, "the columns id and label are needed"),
        (",".join(map(str, range(9999))).encode(), r"it has \['0', '1', '2', '3', '4', '\.\.\.'\]"),
    ],
)
def test_a_file_that_is_not_text_is_refused_in_a_short_message(tmp_path, content, why):
    (tmp_path / "l.csv").write_bytes(content)
    with pytest.raises(LooplineError, match=why) as caught:
        annotations.read(tmp_path / "l.csv")
    assert len(str(caught.value)) < len(str(tmp_path)) + 400


CHOICE = {"type": "choices", "value": {"choices": ["dark"]}}
RECTANGLE = {"x": 10, "y": 20, "width": 50, "height": 25, "rotation": 0, "rectanglelabels": ["spot"]}
REGION = {"type": "rectanglelabels", "original_width": 200, "original_height": 80, "value": RECTANGLE}
RELATION = {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"}


def picture(size=(200, 80), **options):
    out = io.BytesIO()
    Image.new("RGB", size).save(out, options.pop("form", "PNG"), **options)
    return out.getvalue()


def detected(identity="a", image=None):
    """A sample of a detector that found nothing."""
    return {identity: entry(identity, prediction={"boxes": []}, input=image or picture())}


def labelled(*results, identity="a", **more):
    """A task of Label Studio's JSON export with one annotation of these results."""
    return {"id": 1, "data": {"id": identity}, "annotations": [{"id": 1, "result": list(results)} | more]}


def imported(folder, tasks, entries):
    """The labels that are taken, and the counts of those that are not."""
    (folder / "export.json").write_text(json.dumps(tasks))
    taken = annotations.take(annotations.read(folder / "export.json"), entries)
    return taken.labels, dict(taken.passed_over)


def test_label_studios_export_is_read_with_boxes_in_pixels(tmp_path):
    """In the form of https://labelstud.io/guide/export, with coordinates in percent and a cancelled annotation."""
    tasks = [
        labelled(CHOICE, identity="a"),
        labelled(REGION, identity="b"),
        labelled(identity="c", was_cancelled=True),
        {"data": {"id": "d"}, "annotations": []},
    ]
    box = {"label": "spot", "x1": 20, "y1": 16, "x2": 120, "y2": 36}
    labels, passed_over = imported(tmp_path, tasks, {"a": entry("a")} | detected("b"))
    assert (labels, passed_over) == ({"a": "dark", "b": [box]}, {"no label": 2})


def test_a_turned_box_becomes_the_box_around_it(tmp_path):
    turned = REGION | {"value": RECTANGLE | {"rotation": 90}}
    labels, passed_over = imported(tmp_path, [labelled(turned)], detected())
    assert passed_over == {}
    assert labels["a"] == [{"label": "spot", "x1": 0, "y1": 16, "x2": pytest.approx(20), "y2": pytest.approx(116)}]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_label_studios_export_is_read_in_every_encoding_of_json(tmp_path, encoding):
    task = labelled(CHOICE | {"value": {"choices": ["größe"]}})
    (tmp_path / "x.json").write_bytes(json.dumps([task], ensure_ascii=False).encode(encoding))
    assert annotations.read(tmp_path / "x.json").labels["a"][0][0]["value"] == {"choices": ["größe"]}
    (tmp_path / "x.json").write_bytes(json.dumps([task], ensure_ascii=False).encode("latin-1"))
    with pytest.raises(LooplineError, match=r"not Label Studio's JSON export: .*utf-8"):
        annotations.read(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            [{"id": 1, "image": "x", "label": "7", "annotator": 1}],
            "Label Studio's CSV or JSON-MIN, whose ids are those of its tasks: export as JSON",
        ),
        ([{"data": {"id": "a"}, "predictions": []}], "its `annotations` are not a list"),
        ([{"data": {"id": "a"}, "annotations": [7]}], "not a list of objects"),
        ([{"data": {"id": "a"}, "annotations": [{"result": {"value": {}}}]}], "a `result` is not a list"),
        ({"images": [], "annotations": [], "categories": []}, "it is an object, not a list of tasks"),
        ([7], "line 1: .*object"),
        ([{"annotations": []}, 7], "task 0: it has no `data`"),
        ('[{"data": ', "not Label Studio's JSON export"),
        ("[" * 100_000, "the JSON list breaks off at item 1"),
    ],
)
def test_a_malformed_json_export_is_refused_with_the_reason(tmp_path, content, why):
    (tmp_path / "x.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(LooplineError, match=why):
        annotations.read(tmp_path / "x.json")


@pytest.mark.parametrize("name", ["labels.json", "labels.jsonl", "labels.txt"])
def test_json_records_with_id_and_label_are_read(tmp_path, name):
    records = [
        {"id": "a", "label": "dark"},
        {"id": "b", "label": 7},
        {"id": "c", "label": None},
        {"id": "d", "label": "data"},
    ]
    lines = "\n".join(map(json.dumps, records))
    (tmp_path / name).write_text(json.dumps(records) if name == "labels.json" else lines)
    assert annotations.read(tmp_path / name) == annotations.Returned(
        {"a": ["dark"], "b": ["7"], "d": ["data"]}, Counter({"no label": 1})
    )


def test_a_label_is_read_as_ingest_reads_it(tmp_path):
    """Class 0 is a class, and 1.0 is class 1, because a column of integers with a gap becomes floats."""
    path = tmp_path / "l.parquet"
    pq.write_table(pa.table({"id": ["a", "b", "c"], "label": [0.0, 1.0, None]}), path)
    returned = annotations.read(path)
    assert (returned.labels, returned.passed_over) == ({"a": ["0"], "b": ["1"]}, {"no label": 1})
    pq.write_table(pa.table({"id": ["a"], "label": [["x", "y"]]}), path)
    with pytest.raises(LooplineError, match="line 1: cell of type list"):
        annotations.read(path)


def test_label_studios_own_table_is_refused_because_of_its_ids(tmp_path):
    (tmp_path / "l.csv").write_text("annotation_id,annotator,id,image,label,lead_time\n11,1,1,x,7,3.2\n")
    with pytest.raises(LooplineError, match="ids are those of its tasks: export as JSON"):
        annotations.read(tmp_path / "l.csv")


SEVERAL = {"type": "choices", "value": {"choices": ["dark", "bright"]}}
UNPLACED = REGION | {"value": {"format": "rle", "rle": [1], "brushlabels": ["spot"]}, "type": "brushlabels"}


@pytest.mark.parametrize(
    ("tasks", "entries", "reasons"),
    [
        ([labelled(CHOICE, identity="other")], {}, {"the journal does not have the sample": 1}),
        (
            [labelled(CHOICE, identity=7)],
            {},
            {"the task has no sample id: label the tasks that `loopline label export` wrote": 1},
        ),
        ([labelled(CHOICE | {"value": {"choices": []}})], None, {"no class is chosen": 1}),
        ([labelled()], None, {"no class is chosen": 1}),
        ([labelled(SEVERAL)], None, {"several classes for one sample": 1}),
        (
            [labelled(CHOICE), labelled(CHOICE | {"value": {"choices": ["bright"]}})],
            None,
            {"its labels disagree": 1},
        ),
        ([labelled(REGION)], None, {"unused kind of result: rectanglelabels": 1, "no class is chosen": 1}),
        ([labelled(REGION, UNPLACED)], detected(), {"region that is not a box, a polygon or an ellipse": 1}),
        (
            [labelled(REGION | {"value": RECTANGLE | {"rectanglelabels": []}})],
            detected(),
            {"region without a class": 1},
        ),
        ([labelled(REGION)], detected(image=picture((80, 200))), {"boxes drawn on an image of another size": 1}),
        (
            [labelled(REGION, REGION | {"original_width": 100})],
            detected(),
            {"boxes drawn on an image of another size": 1},
        ),
        (
            [labelled({"type": "choices", "value": {"choices": ["unusable"]}})],
            detected(),
            {
                "unused kind of result: choices": 1,
                "results but no region: only an empty annotation means that the image has no object": 1,
            },
        ),
    ],
)
def test_a_label_that_cannot_be_taken_is_counted_with_its_reason(tmp_path, tasks, entries, reasons):
    assert imported(tmp_path, tasks, {"a": entry("a")} if entries is None else entries) == ({}, reasons)


def test_unused_kinds_of_results_do_not_prevent_the_label(tmp_path):
    note = {"type": "textarea", "value": {"text": ["odd"]}}
    labels, passed_over = imported(tmp_path, [labelled(REGION, RELATION, note)], detected())
    assert [box["label"] for box in labels["a"]] == ["spot"]
    assert passed_over == {"unused kind of result: relation": 1, "unused kind of result: textarea": 1}
    assert imported(tmp_path, [labelled(CHOICE, note)], {"a": entry("a")})[0] == {"a": "dark"}


def test_an_empty_annotation_is_a_label_of_no_boxes(tmp_path):
    assert imported(tmp_path, [labelled()], detected()) == ({"a": []}, {})


def test_two_annotations_agree_in_any_order_of_their_boxes(tmp_path):
    other = REGION | {"value": RECTANGLE | {"x": 0}}
    task = labelled(REGION, other)
    task["annotations"].append({"id": 2, "result": [other, REGION]})
    labels, passed_over = imported(tmp_path, [task], detected())
    assert passed_over == {}
    assert [box["x1"] for box in labels["a"]] == [0, 20]


def test_a_table_of_classes_does_not_label_a_detectors_samples(tmp_path):
    (tmp_path / "l.csv").write_text("id,label\na,spot\nb,bright\n")
    taken = annotations.take(annotations.read(tmp_path / "l.csv"), detected() | {"b": entry("b")})
    assert (taken.labels, taken.passed_over) == (
        {"b": "bright"},
        {"the label is not of the kind that the model predicts": 1},
    )


def turned(size, orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(size, form="JPEG", exif=exif)


def test_a_photo_with_an_orientation_is_exported_and_imported_upright(tmp_path):
    """Boxes are in pixels of the upright image, while the file stores width and height swapped."""
    prediction = {"boxes": [journals.box("spot", 0.9, 8, 48, 40, 96)]}
    photos = {"upright": picture((128, 192), form="JPEG"), "turned": turned((192, 128))}
    entries = {name: entry(name, prediction=prediction, input=content) for name, content in photos.items()}
    label_files.export(list(entries.values()), tmp_path / "out", ("spot",))
    tasks = json.loads((tmp_path / "out/tasks.json").read_text())
    upright, sideways = (task["predictions"][0]["result"][0] for task in tasks)
    assert (upright["original_width"], upright["original_height"]) == (128, 192)
    assert sideways == upright
    for task in tasks:
        task["annotations"] = task.pop("predictions")
    labels, passed_over = imported(tmp_path, tasks, entries)
    assert passed_over == {}
    box = {"label": "spot", "x1": 8, "y1": pytest.approx(48), "x2": 40, "y2": 96}
    assert labels == {"upright": [box], "turned": [box]}
    label_files.batch([replace(entries[name], label=label) for name, label in labels.items()], tmp_path / "batch")
    content = json.loads((tmp_path / "batch/instances.json").read_text())
    assert [(row["width"], row["height"]) for row in content["images"]] == [(128, 192)] * 2
    samples = formats.read(tmp_path / "batch", "detection")
    cleaned = clean.clean([("batch", samples)], task="detection", split=SplitSettings(seed=0, val=0.2, test=0.2))
    assert len(cleaned.samples) == 2, "boxes for an image of another size would be set aside"


def test_a_suggestion_that_is_confirmed_comes_back_unchanged(tmp_path):
    prediction = {"boxes": [journals.box("spot", 0.9, 1, 2, 5, 6)]}
    label_files.export([entry("a", prediction=prediction)], tmp_path / "out", ("spot",))
    tasks = json.loads((tmp_path / "out/tasks.json").read_text())
    tasks[0]["annotations"] = tasks[0].pop("predictions")
    labels, _ = imported(tmp_path, tasks, {"a": entry("a", prediction=prediction)})
    assert labels == {"a": [{"label": "spot", "x1": 1, "y1": 2, "x2": 5, "y2": 6}]}
    assert "<RectangleLabels" in (tmp_path / "out/label-config.xml").read_text()


@pytest.mark.parametrize("kind", ["classification", "detection", "text"])
def test_a_batch_is_a_data_set_that_the_pipeline_reads(tmp_path, kind):
    if kind == "text":
        entries = [
            entry("a", input="a, b", label="good", prediction={}),
            entry("b", input="line\nend", label="bad", prediction={}),
        ]
        truth = ["good", "bad"]
    elif kind == "detection":
        entries = [entry("a", label=[journals.box("spot", 1, 1, 2, 5, 6)]), entry("b", label=[], input=journals.png(3))]
        truth = [[("spot", 1, 2, 5, 6)], []]
    else:
        entries = [entry("a", label="7"), entry("b", label="new class", input=journals.png(3))]
        truth = ["7", "new class"]
    label_files.batch(entries, tmp_path / "batch")
    samples = list(formats.read(tmp_path / "batch", kind))
    if kind == "detection":
        boxes = [[(b.label, b.x1, b.y1, b.x2, b.y2) for b in sample.boxes] for sample in samples]
        assert sorted(boxes) == sorted(truth)
    else:
        assert sorted(sample.label for sample in samples) == sorted(truth)


def test_a_class_unsuitable_as_a_folder_name_comes_back_unchanged(tmp_path):
    names = ["../x", ".hidden", "T-shirt/top", "50 %", "%2F", ".."]
    label_files.batch(
        [entry(str(n), label=name, input=journals.png(n)) for n, name in enumerate(names)], tmp_path / "batch"
    )
    assert {sample.label for sample in formats.read(tmp_path / "batch", "classification")} == set(names)
    assert len(list((tmp_path / "batch").iterdir())) == len(names), "nothing is written outside the folder"


def loopline(*arguments, cwd):
    command = [sys.executable, "-m", "loopline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_the_verbs_lead_from_a_journal_to_a_data_set(tmp_path):
    folder = tmp_path / "journal"
    images = {str(k): journals.png(k) for k in range(20)}
    segments.write(folder, [journals.entry(name, image=png) for name, png in images.items()])
    collector = Collector(folder, bounds=Bounds(part_rows=1))
    collector.round()
    done = loopline("label", "export", "classifier", "out", "--journal", folder, "--count", 12, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/labels.csv").read_text())))
    assert len(rows) == 12
    filled = io.StringIO()
    writer = csv.writer(filled)
    writer.writerows(
        [["id", "label"], *([row["id"], "dark" if number % 2 else "bright"] for number, row in enumerate(rows))]
    )
    (tmp_path / "filled.csv").write_text(filled.getvalue())
    done = loopline(
        "label", "import", "classifier", "filled.csv", "--source", "anna", "--journal", folder, cwd=tmp_path
    )
    assert "12 labels of anna" in done.stdout
    too_early = loopline("label", "batch", "classifier", "set", "--journal", folder, cwd=tmp_path)
    assert too_early.returncode == 1
    assert "no label of classifier that may be used" in too_early.stderr
    collector.round()
    done = loopline("label", "batch", "classifier", "set", "--journal", folder, cwd=tmp_path)
    assert "12 labelled samples" in done.stdout
    found = list(formats.read(Path(tmp_path / "set"), "classification"))
    assert sorted(sample.label for sample in found) == ["bright"] * 6 + ["dark"] * 6
    assert len(JournalReader(folder).labelled("classifier")) == 12
    collector.close()


def test_contradicting_labels_and_repeated_samples_are_left_out(tmp_path):
    """Otherwise `data add` would refuse the whole batch, and every later retraining."""
    import brightness

    (tmp_path / "data/classifier").mkdir(parents=True)
    trained_image = brightness.png(250)
    identity = hashlib.sha256(trained_image).hexdigest()
    sample = manifest.Sample(
        id=identity, source="s", path="a", split="train", label="bright", image=trained_image, width=8, height=8
    )
    manifest.write(
        tmp_path / "data/classifier/manifest.parquet", [sample], task="classification", labels=("bright", "dark")
    )
    lines = [
        journals.entry(name, image=image)
        for name, image in (
            ("wrong", trained_image),
            ("good", journals.png(1)),
            ("a", journals.png(2)),
            ("b", journals.png(2)),
            ("good again", journals.png(1)),
        )
    ]
    truths = {"wrong": "dark", "good": "dark", "a": "dark", "b": "bright", "good again": "dark"}
    segments.write(tmp_path / "j", [*lines, *(journals.label(name, label) for name, label in truths.items())])
    collector = Collector(tmp_path / "j")
    collector.round()
    done = loopline("label", "batch", "classifier", "set", "--journal", "j", cwd=tmp_path)
    assert "left out: 3 x another label elsewhere" in done.stdout
    assert "left out: 1 x the same as another" in done.stdout
    assert "1 labelled samples" in done.stdout
    collector.close()


def test_a_label_that_does_not_fit_the_answer_is_left_out():
    """An empty annotation in Label Studio means no boxes, which is a label for a detector but not for a classifier."""
    result = checked([entry("a", label=[]), entry("b", label="dark")], {}, Trust())
    assert [e.id for e in result.entries] == ["b"]
    assert result.refused == {"the label is not of the kind that the model predicts": 1}


@pytest.fixture
def kept(tmp_path):
    """The collector of a journal with a classifier's samples `a` and `b`, and a refused one."""
    rows = [journals.entry("a"), journals.entry("b"), journals.entry("refused") | {"status": 400, "reason": "error"}]
    segments.write(tmp_path / "journal", rows)
    collector = Collector(tmp_path / "journal")
    collector.round()
    yield collector
    collector.close()


def test_an_imported_class_that_the_model_does_not_know_is_refused(tmp_path, kept):
    import bundles

    (tmp_path / "models/classifier").mkdir(parents=True)
    bundles.classifier(tmp_path / "models/classifier/bundle")
    (tmp_path / "l.csv").write_text("id,label\na,purple\n")
    arguments = ("label", "import", "classifier", "l.csv", "--source", "anna", "--journal", tmp_path / "journal")
    done = loopline(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "sample a has the label 'purple', which is not a class of classifier" in done.stderr
    assert kept.round() == 0
    assert loopline(*arguments, "--new-classes", cwd=tmp_path).returncode == 0
    assert kept.round() == 1


def test_only_labels_of_samples_in_the_journal_are_taken(tmp_path, kept):
    arguments = ("label", "import", "classifier", "l.csv", "--source", "anna", "--journal", tmp_path / "journal")
    (tmp_path / "l.csv").write_text("id,label\na,dark\n1,dark\nrefused,dark\nb,\n")
    done = loopline(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 labels of anna go to the journal" in done.stdout
    assert "passed over: 2 x the journal does not have the sample" in done.stdout
    assert "passed over: 1 x no label" in done.stdout
    assert kept.round() == 1
    assert kept.waiting == 0, "no label waits for a sample that will never come"
    (tmp_path / "l.csv").write_text("id,label\n1,dark\n2,bright\n")
    done = loopline(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "no label can be taken: 2 x the journal does not have the sample" in done.stderr
    assert kept.round() == 0


def test_an_image_is_saved_with_the_suffix_of_its_format(tmp_path):
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "JPEG")
    label_files.batch([entry(label="7", input=out.getvalue())], tmp_path / "batch")
    assert [path.suffix for path in (tmp_path / "batch/7").iterdir()] == [".jpg"]


def test_a_class_in_decomposed_characters_matches_the_composed_one():
    from collections import Counter
    from types import SimpleNamespace

    from loopline.journal import annotations

    entries = {"a": SimpleNamespace(prediction={"label": "caf\u00e9"})}
    taken = annotations.take(annotations.Returned({"a": ["cafe\u0301"]}, Counter()), entries)
    assert taken.labels == {"a": "caf\u00e9"}
