"""Layouts with one text per line: a file per class, text and label separated by a tab, fastText, two parallel files."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

from loopline.data.formats.common import IMAGES, SPLITS, Folder, Format, broken, split_of_file, split_of_folder, suffix
from loopline.data.formats.text_tables import has_columns
from loopline.data.raw import RawSample
from loopline.errors import LooplineError
from loopline.tables import columns, encoding

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
_SPLIT_SUFFIXES = frozenset(f".{word}" for words in SPLITS.values() for word in words)
_TABBED = frozenset({".txt", ".tsv", ".tab"}) | _SPLIT_SUFFIXES
_FIRST = 5  # lines by which the layout is recognised
_SAMPLE = 1000  # lines that decide which column holds the labels
_MANY = 20  # lines from which a label that occurs only in the first line is taken for a header
_LABEL = re.compile(r"(?<!\S)__label__(\S*)\s*")


def _lines(folder: Folder, name: str) -> Iterator[str]:
    """Yield the lines of a file, "" for a line too long to be a text. Raises LooplineError if the file cannot be read."""
    folder.opened.add(name)
    try:
        with (folder.root / name).open("rb") as file:
            for line in encoding.lines(file):
                yield (line or "").removesuffix("\r")
    except OSError as error:
        raise LooplineError(f"{folder.root / name} cannot be read: {error.strerror}") from error


def _first(folder: Folder, name: str) -> list[str]:
    """The first lines that are not empty; [] if the file cannot be read."""
    try:
        return list(itertools.islice(filter(None, _lines(folder, name)), _FIRST))
    except LooplineError:
        return []


def _most(part: list[str], first: list[str]) -> bool:
    return 2 * len(part) > len(first)


def _split(name: str) -> str | None:
    """The split in a file's suffix (`reviews.valid`), else in its name, else in its folders."""
    return split_of_folder(suffix(name)[1:]) or split_of_file(name)


def _left_out(folder: Folder, names: list[str], problem: str) -> Iterator[RawSample]:
    """Broken samples for the files that are not in `names`."""
    used = set(names)
    return (broken(name, problem) for name in folder.files if name not in used)


def _class_files(folder: Folder) -> list[str]:
    """Files that share their name and differ in the suffix, which is no known file type: reviews.pos, reviews.neg.

    A suffix that names a split is not a class.
    """
    groups: dict[str, list[str]] = {}
    for name in folder.files:
        if suffix(name) and suffix(name) not in _NO_CLASS and split_of_folder(suffix(name)[1:]) is None:
            groups.setdefault(PurePosixPath(name).with_suffix("").as_posix(), []).append(name)
    return [name for group in groups.values() if len(group) > 1 for name in group]


def _read_class_files(folder: Folder) -> Iterator[RawSample]:
    names = _class_files(folder)
    for name in names:
        label, split = PurePosixPath(name).suffix[1:], split_of_file(name)
        for number, line in enumerate(_lines(folder, name), 1):
            yield RawSample(f"{name}:{number}", None, line, label, None, split)
    yield from _left_out(folder, names, "file that belongs to no class")


def _tabbed(folder: Folder) -> list[str]:
    """Files in which most of the first lines have a tab and the first line names no known columns."""
    if _pairs(folder):
        return []
    names = []
    for name in folder.suffixed(_TABBED):
        first = _first(folder, name)
        tabs = [line for line in first if "\t" in line]
        if _most(tabs, first) and not _are_fasttext(first) and not has_columns(folder, name):
            names.append(name)
    return names


def _read_tabbed(folder: Folder) -> Iterator[RawSample]:
    names = _tabbed(folder)
    for name in names:
        label_first = _label_first(folder, name)
        split = _split(name)
        for number, line in enumerate(_lines(folder, name), 1):
            where = f"{name}:{number}"
            left, tab, right = line.partition("\t")
            text, label = (right, left) if label_first else (left, right)
            if not line:
                yield RawSample(where, None, "", None, None, split)
            elif not tab:
                yield broken(where, "line without a tab", split=split)
            elif "\t" in right:
                yield broken(where, "line with more than one tab", split=split)
            else:
                try:
                    yield RawSample(where, None, text, columns.label_cell(label), None, split)
                except columns.Unreadable as error:
                    yield broken(where, str(error), split=split)
    yield from _left_out(folder, names, "file without tab-separated lines")


def _label_first(folder: Folder, name: str) -> bool:
    """Whether the labels come before the texts: then fewer distinct values are before the tab than after it.

    Raises LooplineError if the lines have several tabs, or a header with unknown names.
    """
    first = _first(folder, name)
    if all(line.count("\t") > 1 for line in first):
        raise _no_columns(
            folder, name, first[0], "The lines have more than one tab, so the first line must name the columns."
        )
    pairs = [line.split("\t") for line in itertools.islice(_lines(folder, name), _SAMPLE) if line.count("\t") == 1]
    before, after = Counter(pair[0] for pair in pairs), Counter(pair[1] for pair in pairs)
    label_first = len(before) < len(after)
    if _is_header(first[0].split("\t"), before if label_first else after):
        why = "The first line looks like column names: call the columns text and label, or remove the line."
        raise _no_columns(folder, name, first[0], why)
    return label_first


def _no_columns(folder: Folder, name: str, line: str, why: str) -> LooplineError:
    cells = [cell.strip() for cell in line.split("\t")]
    kinds = (("texts", columns.TEXT), ("labels", columns.LABEL))
    lacking = " and ".join(f"no column of {kind}" for kind, names in kinds if columns.match(cells, names) is None)
    return LooplineError(
        f"{folder.root / name}: {lacking}: {', '.join(cells):.200}\n{why} See docs/bring-your-own-data.md."
    )


def _is_header(cells: list[str], labels: Counter[str]) -> bool:
    """Whether the first line names columns. Its label must occur only there, and one of these must hold:

    a cell is a known column name, only its label is not a number, or only its label of many lines occurs once.
    """
    unique = [cell for cell in cells if labels[cell] == 1]
    others = [label for label in labels if label not in unique]
    if not unique or len(others) < 2:
        return False
    has_column_name = any(columns.match([cell], columns.TEXT + columns.LABEL) for cell in cells)
    numbers = all(map(_is_number, others)) and not any(map(_is_number, unique))
    return has_column_name or numbers or (labels.total() >= _MANY and all(labels[label] > 1 for label in others))


def _is_number(label: str) -> bool:
    return label.strip().lstrip("-").isdecimal()


def _are_fasttext(first: list[str]) -> bool:
    return _most([line for line in first if _LABEL.search(line)], first)


def _fasttext(folder: Folder) -> list[str]:
    """Files in which most of the first lines have a word that begins with `__label__`."""
    names = (name for name in folder.files if suffix(name) not in _NO_CLASS or suffix(name) in _TABBED)
    return [name for name in names if _are_fasttext(_first(folder, name))]


def _read_fasttext(folder: Folder) -> Iterator[RawSample]:
    names = _fasttext(folder)
    for name in names:
        split = _split(name)
        for number, line in enumerate(_lines(folder, name), 1):
            where, labels = f"{name}:{number}", _LABEL.findall(line)
            if len(labels) > 1:
                yield broken(where, columns.SEVERAL, split=split)
            else:
                yield RawSample(where, None, _LABEL.sub("", line), labels[0] if labels else None, None, split)
    yield from _left_out(folder, names, "file without lines of __label__ and text")


def _pairs(folder: Folder) -> list[tuple[str, str]]:
    """Pairs of a file of texts and its file of labels: val_text.txt, val_labels.txt."""
    files = set(folder.files)
    pairs = []
    for name in folder.suffixed({".txt"}):
        stem = name[: -len(".txt")]
        for labels in ("labels", "label"):
            other = f"{stem.removesuffix('text').removesuffix('texts')}{labels}.txt"
            if stem.endswith(("text", "texts")) and other in files:
                pairs.append((name, other))
                break
    return pairs


def _read_pairs(folder: Folder) -> Iterator[RawSample]:
    used = []
    for texts, labels in _pairs(folder):
        mapping = (PurePosixPath(texts).parent / "mapping.txt").as_posix()
        names = _mapping(folder, mapping)
        used += [texts, labels, mapping]
        split = split_of_file(texts)
        rows = itertools.zip_longest(_lines(folder, texts), _lines(folder, labels))
        for number, (text, mark) in enumerate(rows, 1):
            if text is None or mark is None:
                counts = [sum(1 for _ in _lines(folder, name)) for name in (texts, labels)]
                raise LooplineError(
                    f"{folder.root / texts} has {counts[0]} lines, {labels} has {counts[1]}: each text needs one label"
                )
            where, label = f"{texts}:{number}", mark.strip()
            if names and label and label not in names:
                yield broken(where, "class number without a name", split=split)
            else:
                yield RawSample(where, None, text, names.get(label, label), None, split)
    yield from _left_out(folder, used, "file that is not part of a pair of texts and labels")


def _mapping(folder: Folder, name: str) -> dict[str, str]:
    if name not in folder.files:
        return {}
    pairs = (line.split("\t") for line in _lines(folder, name) if "\t" in line)
    return {pair[0].strip(): pair[1].strip() for pair in pairs}


FASTTEXT = Format(
    name="fastText",
    content="text",
    truth="label",
    layout="lines of __label__NAME and the text in train.txt, valid.txt, or data.train, data.valid",
    detect=lambda folder: bool(_fasttext(folder)),
    read=_read_fasttext,
)
CLASS_FILES = Format(
    name="a file of lines per class",
    content="text",
    truth="label",
    layout="a file per class, one text per line, the class as its suffix: reviews.pos, reviews.neg",
    detect=lambda folder: bool(_class_files(folder)),
    read=_read_class_files,
)
TABBED = Format(
    name="lines of text, tab, label",
    content="text",
    truth="label",
    layout="lines of text, a tab and the label (or label, tab, text) in .txt or .tsv files without a header",
    detect=lambda folder: bool(_tabbed(folder)),
    read=_read_tabbed,
)
PARALLEL = Format(
    name="texts and labels side by side",
    content="text",
    truth="label",
    layout="train_text.txt with train_labels.txt, line by line; mapping.txt (number, tab, name) names the classes",
    detect=lambda folder: bool(_pairs(folder)),
    read=_read_pairs,
)
