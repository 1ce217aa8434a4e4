"""Three layouts of one text a line: a file per class, text and label with a tab between, two files side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from loopline.data.formats.columns import has_columns
from loopline.data.formats.common import IMAGES, Folder, Format, broken, head, lines, split_of_file, suffix
from loopline.data.raw import RawSample
from loopline.errors import LooplineError

_NO_CLASS = IMAGES | {
    ".txt",
    ".csv",
    ".tsv",
    ".tab",
    ".json",
    ".jsonl",
    ".ndjson",
    ".parquet",
    ".xml",
    ".yaml",
    ".yml",
    ".md",
    ".rst",
    ".html",
    ".htm",
    ".pdf",
    ".docx",
    ".xlsx",
    ".py",
    ".sh",
    ".log",
    ".zip",
    ".gz",
    ".tar",
    ".bz2",
    ".xz",
    ".7z",
    ".npy",
    ".npz",
    ".pkl",
    ".bin",
    ".pt",
    ".dat",
    ".old",
    ".bak",
    ".orig",
    ".tmp",
}
_SAMPLE = 1000  # lines that decide which column holds the labels


def _class_files(folder: Folder) -> list[str]:
    """Files that share their name and differ in a suffix that is no known kind of file: reviews.pos, reviews.neg."""
    groups: dict[str, list[str]] = {}
    for name in folder.files:
        if suffix(name) and suffix(name) not in _NO_CLASS:
            groups.setdefault(PurePosixPath(name).with_suffix("").as_posix(), []).append(name)
    return [name for group in groups.values() if len(group) > 1 for name in group]


def _read_class_files(folder: Folder) -> Iterator[RawSample]:
    for name in _class_files(folder):
        label, split = PurePosixPath(name).suffix[1:], split_of_file(name)
        for number, line in enumerate(lines(folder.read(name)), 1):
            yield RawSample(f"{name}:{number}", None, line, label, None, split)


def _tabbed(folder: Folder) -> list[str]:
    """Files whose first lines all have a tab, and no names of columns."""
    if _pairs(folder):
        return []
    found = []
    for name in folder.suffixed({".txt", ".tsv", ".tab"}):
        first = [line for line in head(folder.root / name)[:5] if line]
        if first and all("\t" in line for line in first) and not has_columns(folder, name):
            found.append(name)
    return found


def _read_tabbed(folder: Folder) -> Iterator[RawSample]:
    files = _tabbed(folder)
    for name in folder.suffixed({".txt", ".tsv", ".tab"}):
        if name not in files:
            yield broken(name, "file without tab-separated lines")
            continue
        rows = lines(folder.read(name))
        first = _label_first(rows)
        split = split_of_file(name)
        for number, line in enumerate(rows, 1):
            where = f"{name}:{number}"
            left, tab, right = line.partition("\t") if first else line.rpartition("\t")
            text, label = (right, left) if first else (left, right)
            if not line:
                yield RawSample(where, None, "", None, None, split)
            elif not tab:
                yield broken(where, "line without a tab", split=split)
            else:
                yield RawSample(where, None, text, label, None, split)


def _label_first(rows: list[str]) -> bool:
    """Whether the labels stand before the texts: then there are fewer different words there than after the last tab."""
    tabbed = [row for row in rows if "\t" in row][:_SAMPLE]
    before, after = ({row.partition("\t")[0] for row in tabbed}, {row.rpartition("\t")[2] for row in tabbed})
    return len(before) < len(after)


def _pairs(folder: Folder) -> list[tuple[str, str]]:
    """Files of texts and of labels: val_text.txt, val_labels.txt."""
    there = set(folder.files)
    found = []
    for name in folder.suffixed({".txt"}):
        stem = name[: -len(".txt")]
        for labels in ("labels", "label"):
            other = f"{stem.removesuffix('text').removesuffix('texts')}{labels}.txt"
            if stem.endswith(("text", "texts")) and other in there:
                found.append((name, other))
                break
    return found


def _read_pairs(folder: Folder) -> Iterator[RawSample]:
    for texts, labels in _pairs(folder):
        names = _mapping(folder, PurePosixPath(texts).parent / "mapping.txt")
        rows, marks = lines(folder.read(texts)), lines(folder.read(labels))
        if len(rows) != len(marks):
            raise LooplineError(
                f"{folder.root / texts} has {len(rows)} lines, {labels} has {len(marks)}: each text needs its label"
            )
        split = split_of_file(texts)
        for number, (text, mark) in enumerate(zip(rows, marks, strict=True), 1):
            label = names.get(mark.strip(), mark)
            yield RawSample(f"{texts}:{number}", None, text, label, None, split)


def _mapping(folder: Folder, path: PurePosixPath) -> dict[str, str]:
    name = path.as_posix()
    if name not in folder.files:
        return {}
    pairs = (line.split("\t") for line in lines(folder.read(name)) if "\t" in line)
    return {pair[0].strip(): pair[1].strip() for pair in pairs}


CLASS_FILES = Format(
    name="a file of lines per class",
    tasks=frozenset({"text"}),
    layout="a file per class, one text a line, named by its suffix: reviews.pos, reviews.neg",
    detect=lambda folder: bool(_class_files(folder)),
    read=_read_class_files,
)
TABBED = Format(
    name="lines of text, tab, label",
    tasks=frozenset({"text"}),
    layout="lines of text, a tab and the label (or label, tab, text) in .txt or .tsv files without a header",
    detect=lambda folder: bool(_tabbed(folder)),
    read=_read_tabbed,
)
PARALLEL = Format(
    name="texts and labels side by side",
    tasks=frozenset({"text"}),
    layout="train_text.txt with train_labels.txt, line by line; mapping.txt (number, tab, name) names the classes",
    detect=lambda folder: bool(_pairs(folder)),
    read=_read_pairs,
)
