"""A folder per class: `cat/1.jpg`, `dog/2.jpg`, or one text per file, `pos/1.txt`; perhaps with train/val/test above.

`loopline label batch` percent-encodes characters that a folder's name cannot have: `T-shirt%2Ftop` is `T-shirt/top`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath

from loopline.data.formats.common import (
    IMAGES,
    PLAIN,
    SPLITS,
    Folder,
    Format,
    broken,
    file_sample,
    split_of_folder,
    suffix,
    words,
)
from loopline.data.formats.label_table import table_of_labels
from loopline.data.raw import RawSample
from loopline.errors import LooplineError

TEXTS = frozenset({".txt"})
# A class may consist of files of these unsupported kinds. Files of any other kind are not samples.
_UNREAD = {
    IMAGES: {".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".tga", ".dng", ".cr2", ".nef", ".dcm", ".pdf"},
    TEXTS: {".text", ".html", ".htm", ".md", ".rtf", ".doc", ".docx", ".odt", ".pdf", ".eml"},
}
_UNLABELLED = re.compile(rf"(unsup(ervised)?|un[ _-]?labell?ed)([ _-]?({PLAIN}))?", re.IGNORECASE)
# Folders are parts of the data, not classes, if one name has such a word and all words that differ mean nothing.
_PARTS = (
    "images?|imgs?|parts?|folder|dir|files?|data|dataset|fold|batch|chunk|shard|masks?|thumbs?|thumbnails?|previews?"
)
_SAYS_NOTHING = re.compile(f"{PLAIN}|{_PARTS}|extra|more|[a-z]")
_ESCAPES = {"%25": "%", "%2F": "/", "%2E": "."}
_PLAIN_SPLITS = {word for words in SPLITS.values() for word in words}


def _paths(folder: Folder, suffixes: frozenset[str]) -> list[tuple[str, ...]]:
    return [PurePosixPath(name).parts for name in folder.suffixed(suffixes)]


def _published(folder: Folder, suffixes: frozenset[str]) -> bool:
    """Whether the upper folders are splits: each is named like a split, and at least one holds folders."""
    paths = [path for path in _paths(folder, suffixes) if len(path) > 1]
    return all(split_of_folder(path[0]) for path in paths) and any(len(path) > 2 for path in paths)


def _classes(folder: Folder, suffixes: frozenset[str]) -> Counter[str]:
    """Folder of a class -> number of its files."""
    depth = 2 if _published(folder, suffixes) else 1
    return Counter(path[depth - 1] for path in _paths(folder, suffixes) if len(path) > depth)


def _direct(folder: Folder, suffixes: frozenset[str]) -> set[str]:
    """The class folders that hold files directly, not only in deeper folders."""
    depth = 2 if _published(folder, suffixes) else 1
    return {path[depth - 1] for path in _paths(folder, suffixes) if len(path) == depth + 1}


def _no_classes(folder: Folder, suffixes: frozenset[str]) -> str:
    """What is wrong if the folders are named like splits or parts of the data instead of classes; else ""."""
    return _splits_as_classes(folder, suffixes) or _parts_as_classes(folder, suffixes)


def _parts_as_classes(folder: Folder, suffixes: frozenset[str]) -> str:
    """What is wrong if the folders' names mean no classes, such as part_1, part_2 or images, masks; else ""."""
    classes = sorted(_classes(folder, suffixes))
    word_sets = [set(words(name)) for name in classes]
    every = set[str]().union(*word_sets)
    differing = {word for word in every if not all(word in names for names in word_sets)}
    silent = all(map(_SAYS_NOTHING.fullmatch, differing)) and any(re.fullmatch(_PARTS, word) for word in every)
    if len(classes) < 2 or not silent:
        return ""
    return (
        f"The folders are not named after classes: {', '.join(classes):.200}. Replace them with a folder for each class, "
        "as in cat/1.jpg; a table of labels is not read with images."
    )


def _splits_as_classes(folder: Folder, suffixes: frozenset[str]) -> str:
    """What is wrong if names of splits would become classes, or would be ignored inside classes; else ""."""
    classes = _classes(folder, suffixes)
    splits = {name: split for name in classes if (split := split_of_folder(name))}
    odd = any(name.lower() not in _PLAIN_SPLITS for name in splits)  # train_images, not train
    if splits and (odd or len(set(splits.values())) > 1 or len(splits) == len(classes)):
        listed = ", ".join(f"{name} ({classes[name]} files)" for name in sorted(splits))
        return (
            f"Folders are named like splits, not like classes: {listed}. Put a folder for each class inside each of them, "
            "as in train/cat/1.jpg; a table of labels is not read with images."
        )
    depth = 2 if _published(folder, suffixes) else 1
    inner: dict[str, set[str]] = defaultdict(set)
    for path in _paths(folder, suffixes):
        if len(path) > depth + 1 and split_of_folder(path[depth]):
            inner[path[depth - 1]].add(path[depth])
    of_splits = {split_of_folder(name) for names in inner.values() for name in names}
    if len(of_splits) > 1 or (inner and inner.keys() == classes.keys() and len(classes) > 1):
        listed = ", ".join(f"{name}/{{{','.join(sorted(names))}}}" for name, names in sorted(inner.items()))
        return (
            f"There are split folders inside {listed}. If these are datasets side by side, give one of them; if "
            "they are classes, put the splits above them, as in train/cat/1.jpg."
        )
    return ""


def _detect(folder: Folder, suffixes: frozenset[str], *, at_least: int) -> bool:
    other = TEXTS if suffixes is IMAGES else IMAGES
    classes = _direct(folder, suffixes)
    if len(classes) < at_least or len(folder.suffixed(suffixes)) <= len(folder.suffixed(other)):
        return False
    return not _no_classes(folder, suffixes) and (at_least > 1 or len(_classes(folder, suffixes)) == 1)


def _read(folder: Folder, suffixes: frozenset[str]) -> Iterator[RawSample]:
    published = _published(folder, suffixes)
    depth = 2 if published else 1
    text = suffixes is TEXTS
    _refuse_table_of_labels(folder, {path: path[depth - 1] for path in _paths(folder, suffixes) if len(path) > depth})
    classes = {path[depth - 1] for path in _paths(folder, suffixes | _UNREAD[suffixes]) if len(path) > depth}
    for name in folder.files:
        parts = PurePosixPath(name).parts
        split = split_of_folder(parts[0]) if published and len(parts) > 1 else None
        if len(parts) > depth and parts[depth - 1] in classes and (split or not published):
            if text and suffix(name) not in suffixes:
                yield broken(name, "file that is not .txt", split=split)
            else:
                yield file_sample(folder, name, text=text, label=_label(parts[depth - 1]), split=split)
        elif suffix(name) in suffixes:
            yield broken(name, "not inside a class folder", split=split)


def _refuse_table_of_labels(folder: Folder, classes: dict[tuple[str, ...], str]) -> None:
    """Raise LooplineError if a table labels half of the files or more, and otherwise than their folders do."""
    if table := table_of_labels(folder, classes):
        raise LooplineError(
            f"{folder.root / table} names the files in the folders, and none of its columns agrees with the folders. "
            "Make a folder for each class, as in cat/1.jpg; a table of labels is not read with images. If the folders "
            "are the classes, move the table elsewhere."
        )


def _label(folder: str) -> str | None:
    """The class that a folder's name stands for, None for `unsup` and the like; undoes `written`."""
    if _UNLABELLED.fullmatch(folder):
        return None
    label = re.sub("|".join(_ESCAPES), lambda escape: _ESCAPES[escape[0]], folder)
    return label if folder == written(label) else folder


def written(label: str) -> str:
    """The folder name for a class, with `/`, `%` and a leading dot percent-encoded."""
    name = label.replace("%", "%25").replace("/", "%2F")
    return name.replace(".", "%2E", 1) if name.startswith(".") else name


IMAGE_FOLDERS = Format(
    name="a folder per class",
    content="image",
    truth="label",
    layout="a folder per class: cat/1.jpg, dog/2.jpg; optionally train/, val/, test/ above",
    detect=partial(_detect, suffixes=IMAGES, at_least=2),
    read=partial(_read, suffixes=IMAGES),
    advise=partial(_no_classes, suffixes=IMAGES),
)
TEXT_FOLDERS = Format(
    name="a folder of texts per class",
    content="text",
    truth="label",
    layout="a folder per class, one text per file: pos/1.txt, neg/2.txt; optionally train/, val/, test/ above",
    detect=partial(_detect, suffixes=TEXTS, at_least=2),
    read=partial(_read, suffixes=TEXTS),
    advise=partial(_no_classes, suffixes=TEXTS),
)
ONE_IMAGE_FOLDER = replace(IMAGE_FOLDERS, detect=partial(_detect, suffixes=IMAGES, at_least=1))
ONE_TEXT_FOLDER = replace(TEXT_FOLDERS, detect=partial(_detect, suffixes=TEXTS, at_least=1))
