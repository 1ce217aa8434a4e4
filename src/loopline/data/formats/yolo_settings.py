"""Read what YOLO's data.yaml and classes.txt say: names of classes, published splits, points of poses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from loopline.data.formats.common import Folder, NumberedNames, class_names, lines, nfc, suffix
from loopline.data.formats.finder import ImageFinder
from loopline.errors import LooplineError


@dataclass
class Settings:
    """names: class number -> name, {} where there are none. points: kpt_shape, None where it is not given."""

    names: dict[int, str] = field(default_factory=dict)
    points: tuple[int, int] | None = None
    entries: list[tuple[str, str]] = field(default_factory=list)  # split, and a path or a file that lists paths

    def splits(self, folder: Folder, finder: ImageFinder) -> Iterator[tuple[str, str]]:
        """Image and split. What two splits claim counts as unpublished: small sets are often given as both."""
        claims: dict[str, set[str]] = {}
        for split, entry in self.entries:
            for image in _listed(folder, entry, finder):
                claims.setdefault(image, set()).add(split)
        return ((image, claim.pop()) for image, claim in claims.items() if len(claim) == 1)


def read_settings(folder: Folder, files_of_names: Iterable[str]) -> Settings:
    """Read every YAML with `names`, and the files of names. Raises LooplineError where two of them contradict."""
    settings = Settings()
    names = NumberedNames()
    for file in folder.suffixed({".yaml", ".yml"}):
        content = _load(folder, file)
        if "names" not in content and "kpt_shape" not in content:
            continue
        folder.read(file)  # it counts as used
        names.add(_names(folder, file, content.get("names") or []), folder.root / file)
        points = _points(folder, file, content)
        if points is not None and settings.points not in (None, points):
            raise LooplineError(f"{folder.root / file} has another kpt_shape than a YAML before it")
        settings.points = points if points is not None else settings.points
        base = str(content.get("path") or "")
        for split in ("train", "val", "test"):
            listed = content.get(split) or []
            texts = [listed] if isinstance(listed, str) else [entry for entry in listed if isinstance(entry, str)]
            settings.entries += [(split, _inside(entry, base)) for entry in texts]
    for file in files_of_names:
        names.add(class_names(folder, [file]), folder.root / file)
    settings.names = names.names
    return settings


def _load(folder: Folder, file: str) -> dict[str, Any]:
    """The YAML's content with every value as text, so that a class may be called `no`; {} where it speaks of no data."""
    text = folder.start(file, limit=2**20) or folder.read(file)
    try:
        # The base loader makes text, lists and mappings of text alone.
        content = yaml.load(text, Loader=yaml.CBaseLoader)  # noqa: S506
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if b"names" in text:
            raise LooplineError(f"{folder.root / file} is not valid YAML: {error}") from error
        return {}
    return content if isinstance(content, dict) else {}


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
    """kpt_shape: the number of points, and 2 or 3 values a point; (0, 0) for none."""
    if "kpt_shape" not in content:
        return None
    try:
        points, values = (int(value) for value in content["kpt_shape"])
    except (TypeError, ValueError):
        points, values = -1, -1
    if (points, values) != (0, 0) and not (points > 0 and values in (2, 3)):
        raise LooplineError(f"{folder.root / file}: kpt_shape must be [number of points, 2 or 3]")
    return points, values


def _inside(entry: str, base: str) -> str:
    """The part of a path that lies in the dataset: exporters write `../train/images` and paths of their own machine."""
    path = entry.replace("\\", "/").removeprefix(base.replace("\\", "/").rstrip("/"))
    return "/".join(part for part in path.split("/") if part not in ("", ".", ".."))


def _listed(folder: Folder, entry: str, finder: ImageFinder) -> Iterator[str]:
    """The images of a folder, or those that a .txt file lists by their paths, perhaps of another machine."""
    files = {nfc(name): name for name in folder.files}
    if suffix(entry) == ".txt" and nfc(entry) in files:
        for line in lines(folder.read(files[nfc(entry)])):
            if image := finder.find(line.strip(), entry):
                yield image
    else:
        yield from (name for folded, name in files.items() if folded.startswith(nfc(entry) + "/"))
