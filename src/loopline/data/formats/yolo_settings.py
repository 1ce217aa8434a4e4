"""Read YOLO's data.yaml, Darknet's obj.data and classes.txt: class names, published splits, pose points."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import yaml

from loopline.data.formats.common import (
    IMAGES,
    SPLITS,
    Folder,
    NumberedNames,
    broken,
    class_names,
    lines,
    nfc,
    split_of_file,
    suffix,
)
from loopline.data.formats.finder import ImageFinder
from loopline.data.raw import RawSample
from loopline.errors import LooplineError

_DESCRIBES_DATA = re.compile(rb"""(?:^|[{,])\s*["']?(?:names|kpt_shape)["']?\s*:""", re.MULTILINE)


@dataclass
class YoloSettings:
    """names: class number -> name, {} if there are none. points: kpt_shape, None if it is not stated.

    entries: a split, its folder or list of images (None if missing), and the place of the entry in its file.
    """

    names: dict[int, str] = field(default_factory=dict)
    points: tuple[int, int] | None = None
    entries: list[tuple[str, str | None, str]] = field(default_factory=list)

    def splits(self, folder: Folder, finder: ImageFinder) -> tuple[dict[str, str], list[RawSample]]:
        """Image -> split, and broken samples for entries that lead to no image.

        An image in two splits counts as unpublished: small datasets are often listed as both.
        """
        claims: dict[str, set[str]] = {}
        lost: dict[str, RawSample] = {}
        for split, target, where in self.entries:
            if target is None:
                lost[where] = replace(broken(where, "split whose folder or list is missing"), unused=True)
                continue
            for image, line in _listed(folder, target, finder):
                if image is None:
                    lost[line] = broken(line, finder.missing, split=split)
                else:
                    claims.setdefault(image, set()).add(split)
        return {image: claim.pop() for image, claim in claims.items() if len(claim) == 1}, list(lost.values())


def read_settings(folder: Folder, files_of_names: Iterable[str]) -> YoloSettings:
    """Read every YAML with `names`, every obj.data, image lists named like splits, and the files of class names.

    Raises LooplineError if two files contradict each other, or if a YAML is broken and no other file has names.
    """
    settings, names, listed = YoloSettings(), NumberedNames(), list(files_of_names)
    doubts = _read_yamls(folder, settings, names)
    for file in folder.suffixed({".data"}):
        pairs = (line.partition("=") for line in lines(folder.start(file)))
        content = {key.strip(): value.strip() for key, _, value in pairs}
        entries, target = list(_entries(folder, file, content)), _target(folder, content.get("names", ""), "", file)
        if entries or target:
            folder.read(file)  # it counts as used
        settings.entries += entries
        listed += [target] if target in folder.files and target not in listed else []
    if not settings.entries:
        settings.entries += _lists(folder)
    for file in listed:
        names.add(class_names(folder, [file]), folder.root / file)
    if doubts and not names.names:
        raise doubts[0]
    settings.names = names.names
    return settings


def _read_yamls(folder: Folder, settings: YoloSettings, names: NumberedNames) -> list[LooplineError]:
    """Read every YAML with `names` or `kpt_shape`; return the errors of the others, which may be another program's."""
    doubts = []
    for file in folder.suffixed({".yaml", ".yml"}):
        try:
            content = _load(folder, file)
            if "names" not in content and "kpt_shape" not in content:
                continue
            named = _names(folder, file, content.get("names") or [])
        except LooplineError as error:
            doubts.append(error)
            continue
        folder.read(file)  # it counts as used
        names.add(named, folder.root / file)
        points = _points(folder, file, content)
        if points is not None and settings.points not in (None, points):
            raise LooplineError(f"{folder.root / file} has another kpt_shape than an earlier YAML")
        settings.points = points if points is not None else settings.points
        settings.entries += _entries(folder, file, content)
    return doubts


def _lists(folder: Folder) -> Iterator[tuple[str, str, str]]:
    """Yield the entries for image lists that only their file name marks: train.txt, valid.txt."""
    for file in folder.suffixed({".txt"}):
        split = split_of_file(PurePosixPath(file).name)
        if split and suffix(next(iter(lines(folder.start(file))), "").strip()) in IMAGES:
            yield split, file, file


def _load(folder: Folder, file: str) -> dict[str, Any]:
    """The YAML's content with every value as text, so that a class may be called `no`; {} if it describes no dataset."""
    text = folder.start(file, limit=2**20) or folder.read(file)
    try:
        # The base loader returns only text, lists and mappings of text.
        content = yaml.load(text, Loader=yaml.CBaseLoader)  # noqa: S506
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if _DESCRIBES_DATA.search(text):
            raise LooplineError(f"{folder.root / file} is not valid YAML: {error}") from error
        return {}
    return content if isinstance(content, dict) else {}


def _entries(folder: Folder, file: str, content: dict[str, Any]) -> Iterator[tuple[str, str | None, str]]:
    """Yield the `entries` of `YoloSettings` in a file's content."""
    base = str(content.get("path") or "")
    for split, word in ((split, word) for split, words in SPLITS.items() for word in words):
        listed = content.get(word) or []
        for entry in [listed] if isinstance(listed, str) else listed:
            if isinstance(entry, str):
                yield split, _target(folder, entry, base, file), f"{file}:{word}: {entry}"


def _names(folder: Folder, file: str, names: Any) -> dict[int, str]:
    try:
        numbered = names.items() if isinstance(names, dict) else enumerate(names)
        texts = {int(number): name for number, name in numbered}
    except (TypeError, ValueError):
        texts = {-1: ""}
    if isinstance(names, str) or not all(isinstance(name, str) and name.strip() for name in texts.values()):
        raise LooplineError(f"{folder.root / file}: `names` must be a list, or numbers with names")
    return texts


def _points(folder: Folder, file: str, content: dict[str, Any]) -> tuple[int, int] | None:
    """kpt_shape: the number of points, and 2 or 3 values per point; (0, 0) for no points, None if it is not stated."""
    if "kpt_shape" not in content:
        return None
    try:
        points, values = (int(value) for value in content["kpt_shape"])
    except (TypeError, ValueError):
        points, values = -1, -1
    if (points, values) != (0, 0) and not (points > 0 and values in (2, 3)):
        raise LooplineError(f"{folder.root / file}: kpt_shape must be [number of points, 2 or 3]")
    return points, values


def _target(folder: Folder, entry: str, base: str, file: str) -> str | None:
    """The file or folder of the dataset that a path in `file` means, None if there is none.

    Exporters write paths of their own machine, so ever shorter ends are tried while they name the same split as the full path.
    """
    places = {nfc(name): name for name in folder.files}
    places |= {above.as_posix(): above.as_posix() for name in places for above in PurePosixPath(name).parents}
    path = entry.replace("\\", "/").removeprefix(base.replace("\\", "/").rstrip("/"))
    parts = [part for part in nfc(path).split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        end = "/".join(parts[start:])
        for place in ((PurePosixPath(nfc(file)).parent / end).as_posix(), end):
            if place in places and split_of_file(end) == split_of_file("/".join(parts)):
                return places[place]
    return None


def _listed(folder: Folder, target: str, finder: ImageFinder) -> Iterator[tuple[str | None, str]]:
    """Yield the images of a folder or of a list of paths (None if not found), each with the place that names it."""
    if target not in folder.files:
        yield from ((name, name) for name in folder.files if nfc(name).startswith(target + "/"))
        return
    for number, line in enumerate(lines(folder.read(target)), 1):
        if line.strip():
            yield finder.find(line.strip(), target), f"{target}:{number}"
