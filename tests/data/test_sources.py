"""Opening datasets by name or folder, and batches by version."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import pytest
import yaml

from loopline.data import sources
from loopline.data.raw import RawSample
from loopline.errors import LooplineError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a catalogue of an embedded dataset and one in a mirror: two IDX images of two classes."""
    files = {
        "train-images-idx3-ubyte.gz": gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 2, 8, 8) + bytes(128), mtime=0),
        "train-labels-idx1-ubyte.gz": gzip.compress(struct.pack(">HBBI", 0, 8, 1, 2) + bytes([1, 0]), mtime=0),
    }
    mirror = tmp_path / "mirror/clothes"
    mirror.mkdir(parents=True)
    for name, content in files.items():
        (mirror / name).write_bytes(content)
    about = {"description": "-", "licence": "MIT", "citation": "-", "samples": 2}
    listed = [{"path": n, "bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()]
    entries = {
        "languages": about | {"task": "text", "format": "embedded"},
        "clothes": about
        | {"task": "classification", "format": "IDX", "labels": {"0": "Shirt", "1": "Coat"}, "files": listed},
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data/catalog.yaml").write_text(yaml.safe_dump(entries), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOOPLINE_MIRROR", str(tmp_path / "mirror"))
    return tmp_path


def batch(folder: Path, *texts: str) -> None:
    """A labelled text batch as DVC leaves it."""
    folder.mkdir(parents=True)
    (folder / "texts.csv").write_text("text,label\n" + "".join(f"{text},a\n" for text in texts), encoding="utf-8")
    folder.with_name(folder.name + ".dvc").write_text("outs: []\n", encoding="utf-8")


def test_an_embedded_dataset_opens_by_its_name() -> None:
    first = next(sources.open_dataset("languages", "text"))
    assert (first.label, first.image) == ("ca", None)


def test_a_folder_named_like_a_dataset_in_the_catalogue_is_noted_and_can_be_read(home: Path) -> None:
    assert sources.ambiguity("languages") is None
    batch(home / "languages", "hello", "good evening")
    note = sources.ambiguity("languages")
    assert note is not None
    assert f"the folder {home / 'languages'} is ignored" in note
    assert next(sources.open_dataset("languages", "text")).label == "ca"
    assert [sample.text for sample in sources.open_dataset("./languages", "text")] == ["hello", "good evening"]
    assert sources.ambiguity("./languages") is None


def test_a_known_dataset_is_fetched_and_its_class_numbers_get_names(home: Path) -> None:
    samples = list(sources.open_dataset("clothes", "classification"))
    assert [(sample.label, sample.split) for sample in samples] == [("Coat", "train"), ("Shirt", "train")]
    assert (home / ".loopline/datasets/clothes/train-labels-idx1-ubyte.gz").is_file()


def test_a_folder_opens_by_its_path(home: Path) -> None:
    batch(home / "mine", "one", "two")
    assert [sample.text for sample in sources.open_dataset("mine", "text")] == ["one", "two"]


def test_a_dataset_for_another_task_is_refused_and_the_message_names_fitting_ones() -> None:
    with pytest.raises(LooplineError, match=r"languages is a text dataset, .* classification: use one of clothes"):
        sources.open_dataset("languages", "classification")


def test_an_unknown_dataset_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(LooplineError, match=r"neither a folder .* nor a dataset .*: did you mean languages\?"):
        sources.open_dataset("langages", "text")


def test_batches_come_in_the_order_of_their_versions(home: Path) -> None:
    for number in (10, 2, 3):
        batch(home / f"data/batches/text/v{number}", f"text {number}")
    (home / "data/batches/text/.gitkeep").touch()
    batches = [(name, [sample.text for sample in samples]) for name, samples in sources.open_batches("text", "text")]
    assert batches == [("v2", ["text 2"]), ("v3", ["text 3"]), ("v10", ["text 10"])]


def test_a_model_without_batches_has_none() -> None:
    assert list(sources.open_batches("text", "text")) == []


def test_a_batch_whose_files_are_not_here_says_how_to_get_them(home: Path) -> None:
    batch(home / "data/batches/text/v2", "x")
    (home / "data/batches/text/v2/texts.csv").unlink()
    (home / "data/batches/text/v2").rmdir()
    with pytest.raises(LooplineError, match=r"v2 is missing, only its .dvc file.*dvc checkout.*dvc pull"):
        sources.open_batches("text", "text")


@pytest.mark.parametrize("name", ["v2", "my-batch"])
def test_a_folder_outside_every_version_is_refused(name: str, home: Path) -> None:
    batch(home / "data/batches/text" / name, "x")
    (home / "data/batches/text" / f"{name}.dvc").unlink()
    with pytest.raises(LooplineError, match=rf"{name} is not part of this data version"):
        sources.open_batches("text", "text")


def test_samples_that_a_reader_could_not_read_are_passed_on_to_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = RawSample("x", None, None, None, None, None, problem="a broken row")
    monkeypatch.setattr(sources.formats, "read", lambda *_, **__: iter([broken]))
    assert list(sources.open_dataset("clothes", "classification")) == [broken]
