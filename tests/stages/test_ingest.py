"""The stage `ingest` on small folders: its files agree with each other, and bad data are refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from loopline.data import manifest
from loopline.data.formats import png
from loopline.errors import LooplineError
from loopline.settings import PARAMS
from loopline.stages import ingest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the real parameters and catalogue, whose classifier learns from the folder `shapes`."""
    params = yaml.safe_load((ROOT / "tests" / PARAMS).read_text())
    params["models"]["classifier"]["dataset"] = str(tmp_path / "shapes")
    params["models"]["text"]["dataset"] = "./reviews"
    (tmp_path / PARAMS).write_text(yaml.safe_dump(params))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/catalog.yaml").write_bytes((ROOT / "data/catalog.yaml").read_bytes())
    (tmp_path / "data/catalog").symlink_to(ROOT / "data/catalog")
    monkeypatch.chdir(tmp_path)
    for label in ("2", "10"):
        write_images(tmp_path / "shapes" / label, int(label), 60)
    return tmp_path


def write_images(folder, seed, count):
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 9, 11), np.uint8)
    for number, image in enumerate(pixels):
        (folder / f"{number}.png").write_bytes(png.encode(image))


def read_json(path):
    return json.loads(path.read_text())


def test_a_folder_becomes_a_manifest_and_a_report(project):
    (project / "shapes/10/broken.png").write_bytes(b"\x89PNG")
    ingest.main("classifier")
    folder = project / "data/classifier"
    table = manifest.table(folder / "manifest.parquet")
    report = read_json(folder / "ingest.json")
    assert manifest.labels(folder / "manifest.parquet") == ("2", "10")
    assert table.num_rows == report["samples"] == 120
    assert report["seen"] == 121
    assert report["set_aside"] == {
        "unreadable image": {
            "count": 1,
            "examples": [f"10/broken.png ({report_reason(report)})"],
        }
    }
    assert set(table["source"].to_pylist()) == {"shapes"}
    assert set(zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)) == {(11, 9)}
    with (folder / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    counted = {
        label: {row["split"]: int(row["count"]) for row in rows if row["class"] == label} for label in ("2", "10")
    }
    assert counted == report["classes"]
    assert len(manifest.load_split(folder / "manifest.parquet", "train").ids) == report["splits"]["train"]


def report_reason(report):
    """Return the decoder's reason, whose text is not tested."""
    return report["set_aside"]["unreadable image"]["examples"][0].removeprefix("10/broken.png (").removesuffix(")")


def test_no_written_file_holds_the_path_of_the_data(project):
    (project / "shapes/10/broken.png").write_bytes(b"\x89PNG")
    ingest.main("classifier")
    for path in (project / "data/classifier").iterdir():
        assert str(project).encode() not in path.read_bytes()


def test_the_same_data_gives_the_same_bytes(project):
    written = []
    for _ in range(2):
        ingest.main("classifier")
        written.append({path.name: path.read_bytes() for path in (project / "data/classifier").iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {"manifest.parquet", "ingest.json", "classes.csv"}


def test_a_labelled_batch_adds_samples_and_moves_no_sample_to_another_split(project):
    ingest.main("classifier")
    before = splits(project)
    write_images(project / "data/batches/classifier/v2/7", 7, 40)
    (project / "data/batches/classifier/v2.dvc").write_text("outs: []\n")
    ingest.main("classifier")
    after = splits(project)
    assert after.items() >= before.items()
    assert len(after) == len(before) + 40
    report = read_json(project / "data/classifier/ingest.json")
    assert report["sources"] == {"shapes": 120, "v2": 40}
    assert manifest.labels(project / "data/classifier/manifest.parquet") == ("2", "7", "10")


def splits(project):
    table = manifest.table(project / "data/classifier/manifest.parquet", columns=["id", "split"])
    return dict(zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True))


def test_texts_need_no_image_settings(project):
    (project / "reviews").mkdir()
    rows = [f"{word} {number},{label}" for label, word in (("pos", "good"), ("neg", "bad")) for number in range(40)]
    (project / "reviews/all.csv").write_text("text,label\n" + "\n".join(rows))
    ingest.main("text")
    assert read_json(project / "data/text/ingest.json")["samples"] == 80


def test_data_that_cannot_be_trained_on_is_refused_with_the_reasons(project):
    for path in (project / "shapes/10").iterdir():
        path.write_bytes(b"")
    with pytest.raises(LooplineError) as caught:
        ingest.main("classifier")
    message = str(caught.value)
    assert "only one class: 2" in message
    assert "60 x empty file, e.g. 10/0.png" in message
    assert not (project / "data/classifier").exists()


def test_boxes_that_cannot_be_used_are_explained(project):
    params = yaml.safe_load((project / PARAMS).read_text())
    params["models"]["detector"]["dataset"] = str(project / "scenes")
    (project / PARAMS).write_text(yaml.safe_dump(params))
    write_images(project / "scenes", 0, 20)
    for number in range(20):
        (project / "scenes" / f"{number}.txt").write_text("0 .5 .5 .2 .2 .93\n")
    with pytest.raises(LooplineError) as refusal:
        ingest.main("detector")
    assert "20 x no usable box left, e.g. 0.png (broken label line)" in str(refusal.value)
    assert "20 x box: broken label line, e.g. 0.png (0.txt:1: 0 .5 .5 .2 .2 .93: 6 columns" in str(refusal.value)


def test_files_that_are_not_used_are_named(project):
    (project / "shapes/notes.pdf").write_bytes(b"x")
    (project / "shapes/README.md").write_bytes(b"x")
    ingest.main("classifier")
    report = read_json(project / "data/classifier/ingest.json")
    assert report["left_out"] == {
        "document (readme, licence, ...)": {"count": 1, "examples": ["README.md"]},
        "not used in the format a folder per class": {"count": 1, "examples": ["notes.pdf"]},
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_of_one_group_stay_together_by_a_column_of_a_table(project, kind):
    rows = [
        {"text": f"{label} case {number}", "label": label, "Patient": f"p{number % 20}"}
        for number in range(100)
        for label in ("good", "bad")
    ]
    rows.append({"text": "nobody's", "label": "good", "Patient": ""})
    (project / "reviews").mkdir()
    with (project / f"reviews/a.{kind}").open("w", newline="") as file:
        if kind == "csv":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    params = yaml.safe_load((project / PARAMS).read_text())
    params["models"]["text"]["split"] = {"seed": 0, "val": 0.3, "test": 0.3, "group": {"column": "patient"}}
    (project / PARAMS).write_text(yaml.safe_dump(params))
    ingest.main("text")
    table = manifest.table(project / "data/text/manifest.parquet").to_pydict()
    splits = {}
    for text, split in zip(table["text"], table["split"], strict=True):
        if text != "nobody's":
            splits.setdefault(int(text.split()[-1]) % 20, set()).add(split)
    assert {len(of_group) for of_group in splits.values()} == {1}
    assert len(splits) == 20
    assert read_json(project / "data/text/ingest.json")["groups"] == {
        "count": 20,
        "samples_without": 1,
        "torn": {"count": 0, "examples": []},
    }

    params["models"]["text"]["split"]["group"] = {"column": "doctor"}
    (project / PARAMS).write_text(yaml.safe_dump(params))
    with pytest.raises(LooplineError, match=r"split\.group matches no sample"):
        ingest.main("text")
