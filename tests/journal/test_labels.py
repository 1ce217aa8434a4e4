"""Which samples are worth a label, which labels may be trusted, and the ways out and back."""

import csv
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import journals
import numpy as np
import pytest
from PIL import Image

from loopline.data import formats, manifest
from loopline.errors import LooplineError
from loopline.journal import exchange, quality, segments
from loopline.journal.keeper import Bounds, Keeper
from loopline.journal.labels import Trust, checked, worth
from loopline.journal.store import Entry, Store


def entry(identity="a", *, predicted="bright", probability=0.9, said=None, source="anna", reason="sampled", **more):
    prediction = {"label": predicted, "probability": probability}
    fields = {"input": journals.png(), "signals": {"brightness": 1.0}, "prediction": prediction} | more
    common = {"time": 0.0, "model": "classifier", "version": "v1", "status": 200, "reason": reason}
    return Entry(id=identity, label=said, source=source, **common, **fields)


# Worth a label


def test_the_unsure_the_strange_and_the_different_come_first():
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


def test_what_has_a_label_or_no_input_is_not_worth_one():
    assert worth([entry(said="bright"), entry(input=None)], 5) == []
    assert worth([], 5) == []
    assert len(worth([entry("a"), entry("b")], 5)) == 2


# Trusted


def test_a_label_that_sources_dispute_an_unknown_class_and_a_lost_input_are_left_out():
    given = [
        entry("a", said="bright"),
        entry("b", said="dark"),
        entry("c", said="purple"),
        entry("d", said="dark", input=None),
    ]
    found = checked(given, {"b": {"anna": "dark", "ben": "bright"}}, Trust(known=("bright", "dark")))
    assert [e.id for e in found.entries] == ["a"]
    assert found.refused == {"sources do not agree": 1, "unknown class 'purple'": 1, "its input was not kept": 1}
    assert len(checked(given, {}, Trust()).entries) == 3


@pytest.mark.parametrize(
    ("mallory", "others", "kept"), [(90, 10, 15), (10, 90, 10), (60, 40, 60), (61, 39, 58), (99, 1, 99)]
)
def test_one_source_does_not_decide_alone_where_there_are_several(mallory, others, kept):
    given = [entry(f"m{k}", said="dark", source="mallory") for k in range(mallory)]
    given += [entry(f"o{k}", said="bright", source=f"o{k % 5}") for k in range(others)]
    found = checked(given, {}, Trust(max_share=0.6)).entries
    assert sum(e.source == "mallory" for e in found) == kept
    assert sum(e.source != "mallory" for e in found) == others
    assert kept / len(found) <= 0.6 or others == 1, "a stray label does not throw away all the others"


def test_a_single_source_is_all_there_is():
    assert len(checked([entry(str(k), said="dark") for k in range(9)], {}, Trust()).entries) == 9


# Quality


def test_the_quality_of_a_class_is_right_or_wrong():
    assert quality.of({"label": "a", "probability": 1}, "a") == 1
    assert quality.of({"label": "a", "probability": 1}, "b") == 0


def test_the_quality_of_boxes_is_the_f1_of_those_that_fit_an_object_each():
    box = journals.box
    assert quality.of({"boxes": []}, []) == 1
    assert quality.of({"boxes": [box()]}, []) == 0
    assert quality.of({"boxes": []}, [box()]) == 0
    assert quality.of({"boxes": [box()]}, [box(x1=1)]) == 1
    assert quality.of({"boxes": [box()]}, [box(x1=8, x2=18)]) == 0
    assert quality.of({"boxes": [box()]}, [box(label="moon")]) == 0
    assert quality.of({"boxes": [box(), box(score=0.5)]}, [box()]) == pytest.approx(2 / 3)
    assert quality.of({"boxes": [box()]}, [box(), box(x1=50, x2=60)]) == pytest.approx(2 / 3)


def test_the_quality_of_boxes_is_the_one_that_evaluation_has():
    from loopline.tasks import detection
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

        said = detection.answers(outputs, spec, Split.sizes)[0]
        label = [
            {"label": spec.labels[int(row[0])], **dict(zip(("x1", "y1", "x2", "y2"), row[1:], strict=True))}
            for row in truth
        ]
        assert quality.of(said, label) == pytest.approx(float(detection.quality(outputs, Split, spec)[0]), abs=1e-9)


# Out and back


def test_exported_images_are_there_with_a_table_and_tasks_for_label_studio(tmp_path):
    exchange.export([entry("a/1"), entry("b")], tmp_path / "out", ("bright", 'd"ark'))
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
        exchange.export([entry()], tmp_path / "out", ())


def test_a_table_that_was_filled_in_comes_back_without_what_is_empty(tmp_path):
    (tmp_path / "l.csv").write_text("\ufeffid,sample,label\na,x,bright\nb,y,\n")
    assert exchange.read(tmp_path / "l.csv") == [("a", "bright")]
    for text, why in {
        "name,label\na,b\n": "must name the columns",
        "id,label\n,b\n": "line 2: no id",
        "": "must name",
    }.items():
        (tmp_path / "l.csv").write_text(text)
        with pytest.raises(LooplineError, match=why):
            exchange.read(tmp_path / "l.csv")
    with pytest.raises(LooplineError, match="cannot be read"):
        exchange.read(tmp_path / "none.csv")


def test_label_studios_export_comes_back_its_boxes_in_pixels(tmp_path):
    """The form of https://labelstud.io/guide/export: percent of the image, cancelled annotations left out."""
    value = {"x": 10, "y": 20, "width": 50, "height": 25, "rectanglelabels": ["spot"]}
    size = {"original_width": 200, "original_height": 80}
    tasks = [
        {"data": {"id": "a"}, "annotations": [{"result": [{"value": {"choices": ["dark"]}}]}]},
        {"data": {"id": "b"}, "annotations": [{"result": [{"value": value, **size}]}]},
        {"data": {"id": "c"}, "annotations": [{"was_cancelled": True, "result": []}]},
        {"data": {"id": "d"}, "annotations": []},
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    box = {"label": "spot", "x1": 20, "y1": 16, "x2": 120, "y2": 36}
    assert exchange.read(tmp_path / "export.json") == [("a", "dark"), ("b", [box])]
    (tmp_path / "export.json").write_text('[{"data": {}, "annotations": [{}]}]')
    with pytest.raises(LooplineError, match="is not Label Studio's JSON export"):
        exchange.read(tmp_path / "export.json")


def test_what_is_exported_comes_back_as_it_was_suggested(tmp_path):
    said = {"boxes": [journals.box("spot", 0.9, 1, 2, 5, 6)]}
    exchange.export([entry("a", prediction=said)], tmp_path / "out", ("spot",))
    tasks = json.loads((tmp_path / "out/tasks.json").read_text())
    tasks[0]["annotations"] = tasks[0].pop("predictions")
    (tmp_path / "back.json").write_text(json.dumps(tasks))
    ((identity, boxes),) = exchange.read(tmp_path / "back.json")
    assert identity == "a"
    assert boxes == [{"label": "spot", "x1": 1, "y1": 2, "x2": 5, "y2": 6}]
    assert "<RectangleLabels" in (tmp_path / "out/label-config.xml").read_text()


@pytest.mark.parametrize("kind", ["classification", "detection", "text"])
def test_a_batch_is_a_data_set_that_the_pipeline_reads(tmp_path, kind):
    if kind == "text":
        given = [
            entry("a", input="a, b", said="good", prediction={}),
            entry("b", input="line\nend", said="bad", prediction={}),
        ]
        truth = ["good", "bad"]
    elif kind == "detection":
        given = [entry("a", said=[journals.box("spot", 1, 1, 2, 5, 6)]), entry("b", said=[], input=journals.png(3))]
        truth = [[("spot", 1, 2, 5, 6)], []]
    else:
        given = [entry("a", said="7"), entry("b", said="new class", input=journals.png(3))]
        truth = ["7", "new class"]
    exchange.batch(given, tmp_path / "batch")
    found = list(formats.read(tmp_path / "batch", kind))
    if kind == "detection":
        told = [[(b.label, b.x1, b.y1, b.x2, b.y2) for b in sample.boxes] for sample in found]
        assert sorted(told) == sorted(truth)
    else:
        assert sorted(sample.label for sample in found) == sorted(truth)


def test_a_class_that_no_folder_can_be_called_comes_back_as_it_was(tmp_path):
    names = ["../x", ".hidden", "T-shirt/top", "50 %", "%2F", ".."]
    exchange.batch(
        [entry(str(n), said=name, input=journals.png(n)) for n, name in enumerate(names)], tmp_path / "batch"
    )
    assert {sample.label for sample in formats.read(tmp_path / "batch", "classification")} == set(names)
    assert len(list((tmp_path / "batch").iterdir())) == len(names), "nothing lies outside"


def loopline(*arguments, cwd):
    command = [sys.executable, "-m", "loopline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_the_verbs_from_a_journal_to_a_data_set(tmp_path):
    folder = tmp_path / "journal"
    images = {str(k): journals.png(k) for k in range(20)}
    segments.write(folder, [journals.entry(name, image=png) for name, png in images.items()])
    keeper = Keeper(folder, bounds=Bounds(part_rows=1))
    keeper.round()
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
    none = loopline("label", "batch", "classifier", "set", "--journal", folder, cwd=tmp_path)
    assert none.returncode == 1
    assert "no label of classifier that may be used" in none.stderr
    keeper.round()
    done = loopline("label", "batch", "classifier", "set", "--journal", folder, cwd=tmp_path)
    assert "12 labelled samples" in done.stdout
    found = list(formats.read(Path(tmp_path / "set"), "classification"))
    assert sorted(sample.label for sample in found) == ["bright"] * 6 + ["dark"] * 6
    assert len(Store(folder).labelled("classifier")) == 12
    keeper.close()


def test_a_label_that_contradicts_the_data_set_or_another_one_and_a_repeated_sample_are_left_out(tmp_path):
    """`data add` would refuse the whole batch for it, and every retraining after."""
    import brightness

    (tmp_path / "data/classifier").mkdir(parents=True)
    known = brightness.png(250)
    identity = hashlib.sha256(known).hexdigest()
    sample = manifest.Sample(
        id=identity, source="s", path="a", split="train", label="bright", image=known, width=8, height=8
    )
    manifest.write(
        tmp_path / "data/classifier/manifest.parquet", [sample], task="classification", labels=("bright", "dark")
    )
    lines = [
        journals.entry(name, image=image)
        for name, image in (
            ("wrong", known),
            ("good", journals.png(1)),
            ("a", journals.png(2)),
            ("b", journals.png(2)),
            ("good again", journals.png(1)),
        )
    ]
    truths = {"wrong": "dark", "good": "dark", "a": "dark", "b": "bright", "good again": "dark"}
    segments.write(tmp_path / "j", [*lines, *(journals.label(name, label) for name, label in truths.items())])
    keeper = Keeper(tmp_path / "j")
    keeper.round()
    done = loopline("label", "batch", "classifier", "set", "--journal", "j", cwd=tmp_path)
    assert "left out: 3 x another label elsewhere" in done.stdout
    assert "left out: 1 x the same as another" in done.stdout
    assert "1 labelled samples" in done.stdout
    keeper.close()


def test_a_label_that_does_not_fit_the_answer_is_left_out():
    """An empty answer in Label Studio is no box, which is a label of a detector and none of a classifier."""
    found = checked([entry("a", said=[]), entry("b", said="dark")], {}, Trust())
    assert [e.id for e in found.entries] == ["b"]
    assert found.refused == {"a label of another kind": 1}


def test_an_imported_class_that_the_model_does_not_know_is_refused(tmp_path):
    import bundles

    (tmp_path / "models/classifier").mkdir(parents=True)
    bundles.classifier(tmp_path / "models/classifier/bundle")
    (tmp_path / "l.csv").write_text("id,label\na,purple\n")
    arguments = ("label", "import", "classifier", "l.csv", "--source", "anna", "--journal", tmp_path / "journal")
    done = loopline(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "a is 'purple', which classifier does not know" in done.stderr
    assert not (tmp_path / "journal").exists()
    assert loopline(*arguments, "--new-classes", cwd=tmp_path).returncode == 0


def test_an_image_is_saved_by_what_it_is(tmp_path):
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "JPEG")
    exchange.batch([entry(said="7", input=out.getvalue())], tmp_path / "batch")
    assert [path.suffix for path in (tmp_path / "batch/7").iterdir()] == [".jpg"]
