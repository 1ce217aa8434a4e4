"""The bundle: complete or absent, the same bytes for the same content, and only the files in its sums."""

import json
import shutil
import subprocess

import brightness
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.drift import reference as drift
from loopline.release import bundle
from loopline.release.bundle import BundleError
from loopline.tasks.spec import ModelSpec, TextInput


def test_a_written_bundle_is_read_back(make):
    written = make("bundle", 130)
    opened = bundle.read(written.folder)
    assert opened == written
    assert opened.manifest == brightness.described()
    assert drift.read(opened.folder / "drift.json").samples == 200


def test_the_same_content_gives_the_same_bytes_and_version(make):
    a, b = make("a", 130), make("b", 130)
    assert a.version == b.version
    for path in a.folder.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (b.folder / path.relative_to(a.folder)).read_bytes()


def test_other_content_gives_another_version(make):
    assert len({make("a", 130).version, make("b", 131).version, make("c", 130, code="d" * 64).version}) == 3


def test_sha256sum_agrees_with_the_sums(make):
    folder = make("bundle", 130).folder
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


@pytest.mark.parametrize("name", ["model.onnx", "bundle.json", "drift.json", "MODEL_CARD.md", "pictures/confusion.png"])
def test_a_changed_file_is_named(make, name):
    folder = make("bundle", 130).folder
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{name} was changed"):
        bundle.verify(folder)


@pytest.mark.parametrize("name", ["model.onnx", "drift.json", "pictures/confusion.png"])
def test_a_missing_file_is_named(make, name):
    folder = make("bundle", 130).folder
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        bundle.verify(folder)


def test_a_file_without_a_sum_is_named(make):
    folder = make("bundle", 130).folder
    (folder / "pictures" / "weights.pkl").write_bytes(b"")
    with pytest.raises(BundleError, match=r"pictures/weights\.pkl is not listed"):
        bundle.verify(folder)


def test_a_required_file_cannot_be_removed_from_the_sums(make):
    folder = make("bundle", 130).folder
    (folder / "drift.json").unlink()
    sums = folder / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if "drift.json" not in line))
    with pytest.raises(BundleError, match=r"drift\.json is missing"):
        bundle.verify(folder)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../b", "a\\b", ".hidden", "a//b", "", "SHA256SUMS", "model.onnx"]
)
def test_a_name_that_leaves_the_bundle_or_comes_twice_is_refused(make, name):
    folder = make("bundle", 130).folder
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(BundleError, match="line 6"):
        bundle.verify(folder)


def test_a_link_is_refused(make, tmp_path):
    folder = make("bundle", 130).folder
    shutil.move(folder / "drift.json", tmp_path / "drift.json")
    (folder / "drift.json").symlink_to(tmp_path / "drift.json")
    with pytest.raises(BundleError, match=r"drift\.json is a link"):
        bundle.verify(folder)


def test_a_folder_without_sums_is_not_a_bundle(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        bundle.read(tmp_path)


def test_a_killed_run_leaves_the_old_bundle_and_does_not_block_the_next_run(make, monkeypatch, tmp_path):
    old = make("bundle", 130)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bundle, "_replace", killed)
        with pytest.raises(KeyboardInterrupt):
            make("bundle", 131)
    assert bundle.read(old.folder) == old

    (tmp_path / "bundle.partial").mkdir()  # as SIGKILL leaves it
    (tmp_path / "bundle.partial" / "half.onnx").write_bytes(b"half")
    assert make("bundle", 131).version == bundle.verify(tmp_path / "bundle") != old.version
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "parts"]


def test_after_a_kill_between_the_two_renames_there_is_no_bundle_and_the_next_run_writes_it(make, tmp_path):
    old = make("bundle", 130)
    old.folder.rename(tmp_path / "bundle.old.partial")  # as SIGKILL leaves it
    with pytest.raises(BundleError, match="is not a bundle"):
        bundle.read(old.folder)
    assert make("bundle", 131) == bundle.read(old.folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "parts"]


def test_a_missing_part_is_named_and_nothing_is_left(make, tmp_path):
    complete = make("bundle", 130)
    with pytest.raises(BundleError, match=r"nowhere\.onnx not found"):
        bundle.write(
            tmp_path / "other",
            complete.manifest,
            model=tmp_path / "nowhere.onnx",
            drift=complete.folder / "drift.json",
            card="# c\n",
        )
    assert not list(tmp_path.glob("other*"))


def test_a_text_bundle_needs_its_tokenizer(make, tmp_path):
    image_bundle = make("bundle", 130)
    fields = vars(image_bundle.manifest) | {
        "spec": ModelSpec(task="text", labels=("a", "b"), text=TextInput(max_tokens=8))
    }
    options = {"model": image_bundle.model, "drift": image_bundle.folder / "drift.json", "card": "# t\n"}
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        bundle.write(tmp_path / "text", bundle.Manifest(**fields), **options)
    (tmp_path / "tokenizer.json").write_text("{}")
    written = bundle.write(
        tmp_path / "text", bundle.Manifest(**fields), **options, tokenizer=tmp_path / "tokenizer.json"
    )
    assert (written.folder / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "has schema 2, this version reads 1"),
        ({"surprise": 1}, "surprise"),
        ({"lineage": {}}, "missing"),
        ({"name": "a' OR name != 'b"}, "cannot name a model"),
        ({"spec": {"task": "text"}}, "labels"),
    ],
)
def test_another_schema_and_wrong_fields_are_refused(change, message):
    content = json.loads(brightness.described().to_json()) | change
    with pytest.raises(BundleError, match=message):
        bundle.Manifest.from_json(json.dumps(content))


@given(st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=4, unique=True))
def test_any_label_survives_the_round_trip(labels):
    described = brightness.described(labels=tuple(labels))
    assert bundle.Manifest.from_json(described.to_json()) == described
