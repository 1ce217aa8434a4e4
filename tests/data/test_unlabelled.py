"""Samples without labels: what a folder of them gives, and that nothing vanishes uncounted."""

import csv
import hashlib
import io
import json

import pytest
from PIL import Image

from loopline.data import unlabelled
from loopline.errors import LooplineError


def png(value):
    out = io.BytesIO()
    Image.new("L", (8, 8), value).save(out, "PNG")
    return out.getvalue()


def sha(content):
    return hashlib.sha256(content).hexdigest()


def test_images_of_any_subfolder_are_taken_once_and_the_rest_is_counted(tmp_path):
    files = {
        "images/a.png": png(1),
        "images/deep/b.PNG": png(2),
        "c.png": png(1),
        "tested.png": png(3),
        "broken.jpg": b"\xff\xd8no image",
        "empty.png": b"",
        "labels.csv": b"id,sample,predicted,label\n",
        "readme.md": b"# hello",
        ".hidden": b"x",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    samples, left_out = unlabelled.read(tmp_path, "image", {sha(png(3)): "test"})
    assert sorted(sample.id for sample in samples) == sorted([sha(png(1)), sha(png(2))])
    assert len(samples) + len(left_out) == len(files), left_out
    for reason in ("copy of another sample", "copy of a sample in the split test", "unreadable image", "empty file"):
        assert any(line.startswith(f"1 x {reason}") for line in left_out), (reason, left_out)


@pytest.mark.parametrize("name", ["journal.csv", "texts.tsv", "texts.jsonl", "texts.json", "texts.parquet"])
def test_texts_come_from_tables_of_any_kind(tmp_path, name):
    rows = ["a fine film", " a fine film ", "dull", "known", ""]
    path = tmp_path / name
    if name.endswith("parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": rows}), path)
    elif "json" in name:
        records = [{"text": row} for row in rows]
        path.write_text("\n".join(map(json.dumps, records)) if name.endswith("l") else json.dumps(records))
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",")
            column = "sample" if name == "journal.csv" else "text"
            writer.writerows([["id", column], *([number, row] for number, row in enumerate(rows))])
    samples, left_out = unlabelled.read(path, "text", {sha(b"known"): "val"})
    assert [sample.text for sample in samples] == ["a fine film", "dull"]
    assert len(samples) + len(left_out) == len(rows)
    assert any("copy of a sample in the split val" in line for line in left_out)
    assert any("empty text" in line for line in left_out)


def test_a_folder_without_any_usable_sample_is_refused_with_the_reasons(tmp_path):
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        LooplineError, match=r"1 x table without a text column, e\.g\. numbers\.csv.*give a folder with tables"
    ):
        unlabelled.read(tmp_path, "text", {})
    with pytest.raises(LooplineError, match=r"1 x file that is not an image.*give a folder with images"):
        unlabelled.read(tmp_path, "image", {})


def test_what_the_journal_exports_is_such_a_folder(tmp_path):
    from loopline.journal import label_files
    from loopline.journal.reader import Entry

    asked = Entry(
        id="1",
        time=0.0,
        model="text",
        version="v",
        status=200,
        reason="",
        input="a fine film",
        prediction={"label": "fine"},
        signals={},
        label=None,
        source=None,
    )
    label_files.export([asked], tmp_path / "export", ("dull", "fine"))
    samples, left_out = unlabelled.read(tmp_path / "export", "text", {})
    assert [sample.text for sample in samples] == ["a fine film"]
    assert len(left_out) == 2, "tasks.json and label-config.xml"
