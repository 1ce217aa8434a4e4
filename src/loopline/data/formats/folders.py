"""A folder per class: `cat/1.jpg`, `dog/2.jpg`, or one text a file, `pos/1.txt`; perhaps with train/val/test above.

A name that no folder can have is written as in addresses: `T-shirt%2Ftop` is the class `T-shirt/top`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from urllib.parse import unquote

from loopline.data.formats.common import IMAGES, Folder, Format, broken, file_sample, split_of_folder
from loopline.data.raw import RawSample

TEXTS = frozenset({".txt"})


def _published(folder: Folder) -> bool:
    """Whether the upper folders are splits: each is named like one, and one of them has folders inside."""
    parts = [PurePosixPath(name).parts for name in folder.files if "/" in name]
    return all(split_of_folder(part[0]) for part in parts) and any(len(part) > 2 for part in parts)


def classes(folder: Folder, suffixes: frozenset[str]) -> set[str]:
    """The folders that hold files of those suffixes and would be classes; none where an image lies deeper than that."""
    depth = 2 if _published(folder) else 1
    parts = [PurePosixPath(name).parts for name in folder.suffixed(suffixes)]
    return {part[depth - 1] for part in parts if len(part) == depth + 1}


def _detect(folder: Folder, suffixes: frozenset[str], *, at_least: int) -> bool:
    other = TEXTS if suffixes is IMAGES else IMAGES
    found = classes(folder, suffixes)
    return len(found) >= at_least and len(folder.suffixed(suffixes)) > len(folder.suffixed(other))


def _read(folder: Folder, *, text: bool) -> Iterator[RawSample]:
    published = _published(folder)
    depth = 2 if published else 1
    for name in folder.files:
        parts = PurePosixPath(name).parts
        split = split_of_folder(parts[0]) if published and len(parts) > 1 else None
        if len(parts) <= depth:
            yield broken(name, "not inside a class's folder", split=split)
        else:
            yield file_sample(folder, name, text=text, label=unquote(parts[depth - 1]), split=split)


IMAGE_FOLDERS = Format(
    name="a folder per class",
    tasks=frozenset({"classification"}),
    layout="a folder per class: cat/1.jpg, dog/2.jpg; optionally train/, val/, test/ above",
    detect=lambda folder: _detect(folder, IMAGES, at_least=2),
    read=lambda folder: _read(folder, text=False),
)
TEXT_FOLDERS = Format(
    name="a folder of texts per class",
    tasks=frozenset({"text"}),
    layout="a folder per class, one text a file: pos/1.txt, neg/2.txt; optionally train/, val/, test/ above",
    detect=lambda folder: _detect(folder, TEXTS, at_least=2),
    read=lambda folder: _read(folder, text=True),
)
ONE_IMAGE_FOLDER = replace(IMAGE_FOLDERS, detect=lambda folder: _detect(folder, IMAGES, at_least=1))
ONE_TEXT_FOLDER = replace(TEXT_FOLDERS, detect=lambda folder: _detect(folder, TEXTS, at_least=1))
