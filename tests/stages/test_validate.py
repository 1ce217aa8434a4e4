"""The stage `validate`, which stops bad data."""

import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loopline.data import manifest
from loopline.data.manifest import Sample
from loopline.errors import LooplineError
from loopline.stages import stage_files, validate

PARAMS = Path(__file__).parents[1] / "params.yaml"
LABELS = ("<b>wild</b> & free", "tame")


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text(PARAMS.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ingested(*extra: Sample, labels: tuple[str, ...] = LABELS) -> None:
    """Write what ingest writes: 600 texts of `labels` in turn, and the extra ones."""
    samples = list(extra)
    for number in range(600):
        text, split = f"text {number}", manifest.SPLITS[0 if number % 10 < 8 else number % 10 - 7]
        common = {"source": "zoo", "path": f"{number}.txt", "label": labels[number // 10 % len(labels)]}
        samples.append(Sample(id=hashlib.sha256(text.encode()).hexdigest(), text=text, split=split, **common))
    manifest.write(stage_files.manifest("text"), samples, task="text", labels=labels)
    set_aside = {"a text with two labels": {"count": 3, "examples": ["<i>.txt"]}}
    stage_files.write_json(Path("data/text/ingest.json"), {"samples": len(samples), "set_aside": set_aside})


def test_good_data_passes_and_leaves_its_reports() -> None:
    ingested()

    validate.main("text")

    verdict = json.loads(Path("data/text/validation.json").read_text(encoding="utf-8"))
    assert verdict["passed"] and verdict["samples"] == 600
    assert verdict["counts"]["tame"] == {"train": 240, "val": 30, "test": 30}
    assert "All 15 checks passed." in Path("reports/text/validation.html").read_text(encoding="utf-8")
    assert Path("reports/text/data_docs/index.html").exists()


def test_bad_data_stops_the_pipeline_with_the_reason_and_the_remedy() -> None:
    ingested(Sample(id="0" * 64, source="zoo", path="odd.txt", split="train", label="tame", text=" "))

    with pytest.raises(LooplineError) as error:
        validate.main("text")

    for words in ("failed 2 check(s)", "No text is blank.", "odd.txt", "Fill the row", "reports/text/validation.html"):
        assert words in str(error.value)
    page = Path("reports/text/validation.html").read_text(encoding="utf-8")
    assert page.index("No text is blank.") < page.index("odd.txt: ink 0") < page.index("There are at least")
    assert json.loads(Path("data/text/validation.json").read_text(encoding="utf-8"))["passed"] is False


def test_two_runs_leave_the_same_bytes() -> None:
    ingested()
    written = []
    for _ in range(2):
        validate.main("text")
        written.append([Path(p).read_bytes() for p in ("data/text/validation.json", "reports/text/validation.html")])

    assert written[0] == written[1]
    assert b"/tmp" not in b"".join(written[0])


class Tags(HTMLParser):
    """Collects the tags that a page leaves open, and those that would load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "rect"):
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe") or dict(attrs).get("src"):
            self.loads.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_complete_loads_nothing_and_escapes_markup_in_the_data() -> None:
    ingested()
    validate.main("text")
    page = Path("reports/text/validation.html").read_text(encoding="utf-8")

    tags = Tags()
    tags.feed(page.replace("/>", ">"))

    assert tags.open == [] and tags.loads == []
    assert "<b>" not in page and "&lt;b&gt;wild&lt;/b&gt; &amp; free" in page and "&lt;i&gt;.txt" in page
    assert not re.search(r"url\(|https?:|@import", page)


def test_without_ingest_the_stage_says_what_to_run() -> None:
    with pytest.raises(LooplineError, match="dvc repro"):
        validate.main("text")


def test_near_copies_and_torn_groups_only_cause_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    words = "The committee met in the old town hall to look at the budget and put off its decision until spring."
    rows = {"train": words, "test": words.replace("old", "new")}
    common = {"source": "zoo", "label": "tame"}
    ingested(
        *(
            Sample(id=hashlib.sha256(text.encode()).hexdigest(), text=text, split=split, path=split, **common)
            for split, text in rows.items()
        )
    )
    path = Path("data/text/ingest.json")
    report = json.loads(path.read_text(encoding="utf-8"))
    stage_files.write_json(path, report | {"groups": {"torn": {"count": 2, "examples": ["clip1", "clip2"]}}})

    validate.main("text")

    verdict = json.loads(Path("data/text/validation.json").read_text(encoding="utf-8"))
    assert verdict["passed"]
    near = verdict["near_copies"]
    assert (near["count"], near["compared"], near["left_out"]) == (1, 1, 120)
    assert near["examples"] == ["test test and train"]
    output = capsys.readouterr().out
    page = Path("reports/text/validation.html").read_text(encoding="utf-8")
    for warning in (
        "1 of 1 held-out samples are near copies of training ones, such as test test and train",
        "2 groups are in",
    ):
        assert warning in output
        assert warning in page
    assert "warning" not in Path("data/text/validation.json").read_text(encoding="utf-8").split('"warnings"')[0]


def test_classes_that_may_be_the_same_or_missing_cause_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    ingested(labels=("1", "1.0", "Cat", "cat", "dog", "NaN"))
    validate.main("text")
    output = capsys.readouterr().out
    assert "classes that may be one: '1', '1.0'. Write" in output
    assert "classes that may be one: 'Cat', 'cat'. Write" in output
    assert "a class is called 'NaN'" in output
    assert "dog" not in output


def test_different_classes_cause_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    ingested(labels=("1", "10", "cat", "cats"))
    validate.main("text")
    assert "class" not in capsys.readouterr().out
