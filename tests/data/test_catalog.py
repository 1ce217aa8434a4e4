"""The shipped catalogue, and the messages for a wrong one."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from loopline.data import catalog
from loopline.errors import LooplineError

ENTRY = """
toy:
  description: a toy
  task: text
  format: toy
  samples: 1
  licence: MIT
  citation: nobody
  url: https://example.org/{from}
"""
FILES = f"""  files:
    - path: a.txt
      bytes: 3
      sha256: {"f" * 64}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "catalog.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_dataset_has_an_entry() -> None:
    assert list(catalog.load()) == [
        "digits", "digit-scenes", "languages", "fashion-mnist", "bccd", "rt-polarity",
        "notmnist", "sentiment-labelled-sentences", "tweeteval-sentiment",
    ]  # fmt: skip


def test_every_file_has_an_https_address_at_a_fixed_commit_or_needs_the_mirror() -> None:
    for dataset in catalog.load().values():
        for file in dataset.files:
            address = dataset.address(file)
            assert (address is None) == file.mirror_only
            if address:
                parts = urlsplit(address)
                assert parts.scheme == "https"
                assert any(len(part) == 40 for part in parts.path.split("/")), address
                assert "{" not in address


def test_a_long_list_of_files_stands_beside_the_catalogue() -> None:
    bccd = catalog.load()["bccd"]
    assert len(bccd.files) == 734
    assert sum(file.path.endswith(".jpg") for file in bccd.files) == bccd.samples
    assert bccd.bytes == 8_805_132


def test_the_listing_says_where_each_dataset_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOOPLINE_MIRROR", raising=False)
    path = write(tmp_path, ENTRY + FILES)
    assert catalog.listing(path, root=tmp_path / "cache").splitlines() == [
        "NAME  TASK  SAMPLES    SIZE  LICENCE  WHERE",
        "toy   text        1  0.0 MB  MIT      not downloaded",
    ]
    (tmp_path / "mirror/toy").mkdir(parents=True)
    (tmp_path / "mirror/toy/a.txt").write_text("abc")
    monkeypatch.setenv("LOOPLINE_MIRROR", str(tmp_path / "mirror"))
    assert catalog.listing(path, root=tmp_path / "cache").endswith("mirror")
    assert catalog.listing(path, root=tmp_path / "mirror").endswith("downloaded")


def test_the_listing_shows_an_interrupted_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOOPLINE_MIRROR", raising=False)
    path = write(tmp_path, ENTRY + FILES + FILES.replace("a.txt", "b.txt").removeprefix("  files:\n"))
    (tmp_path / "cache/toy").mkdir(parents=True)
    (tmp_path / "cache/toy/b.txt").write_text("abc")
    assert catalog.listing(path, root=tmp_path / "cache").endswith("1 of 2 files missing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENTRY + FILES + "  licens: MIT\n", r"toy.licens: Extra inputs"),
        (ENTRY + FILES.replace("f" * 64, "f" * 63), r"toy.files.0.sha256"),
        (ENTRY + FILES.replace("a.txt", "../a.txt"), r"toy.files.0.path: .*stays inside"),
        (ENTRY + FILES.replace("a.txt", "/etc/a.txt"), r"toy.files.0.path: .*stays inside"),
        (ENTRY.replace("  licence: MIT\n", "") + FILES, r"toy.licence: Field required"),
        (ENTRY.replace("  citation: nobody\n", "") + FILES, r"toy.citation: Field required"),
        (ENTRY, r"any other dataset needs some"),
        ("toy: [", r"not valid YAML"),
        ("- toy", r"must map names to datasets"),
        ("toy: 3", r"must map names to datasets"),
    ],
)
def test_a_wrong_catalogue_names_the_key(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(LooplineError, match=message):
        catalog.load(write(tmp_path, text))


def test_a_list_of_files_that_was_changed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "toy.tsv").write_text("sha256\tbytes\tpath\n")
    path = write(tmp_path, ENTRY + f"  file_list: {{path: toy.tsv, sha256: '{'f' * 64}'}}\n")
    with pytest.raises(LooplineError, match=r"toy.tsv is missing or changed"):
        catalog.load(path)


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(LooplineError, match=r"did you mean fashion-mnist\b.*There are digits, "):
        catalog.find("fasion-mnist")
