"""Find the image that an annotation names, even by a path of another machine or in another Unicode form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from loopline.data.formats.common import IMAGES, Folder, broken, nfc, split_of_parts
from loopline.data.raw import RawSample

NOT_FOUND = "image file not found"
AMBIGUOUS = "several images with that name"
_MASKS = re.compile(
    r"(?:.*/)?Segmentation(?:Class|Object)[^/]*/", re.IGNORECASE
)  # VOC's masks have the names of its photographs


class ImageFinder:
    """Looks up the images of a folder by name, in any case and Unicode form. `missing`: why the last lookup failed."""

    def __init__(self, folder: Folder) -> None:
        self.images = tuple(image for image in folder.suffixed(IMAGES) if not _MASKS.match(image))
        self.used: set[str] = set()
        self.missing = NOT_FOUND
        self._by_stem: dict[str, list[str]] = {}
        for image in self.images:
            self._by_stem.setdefault(_folded(PurePosixPath(image).stem), []).append(image)

    def find(self, name: str, near: str, *, split: str | None = None, any_suffix: bool = False) -> str | None:
        """The path of the image, which then counts as used; None if there is none, or if several are equally likely.

        The longest common end of the paths decides, then the folder nearest to the annotation file `near`, then the split.
        An image in a folder of another split than that of `name` (or else of `near`) is a different image of the same name.
        any_suffix: whether a.png may be the image that the annotation calls a.jpg.
        """
        named = PurePosixPath(name.replace("\\", "/"))
        candidates = self._by_stem.get(_folded(named.stem), []) if named.name else []
        if not any_suffix:
            candidates = [path for path in candidates if PurePosixPath(path).suffix.lower() == named.suffix.lower()]
        if expected := split_of_parts(named.as_posix()) or split_of_parts(near):
            candidates = [path for path in candidates if split_of_parts(path) in (None, expected)]
        candidates = _longest_end(candidates, named, any_suffix=any_suffix)
        if len(candidates) > 1:
            candidates = _nearest(candidates, near)
        if len(candidates) > 1:
            candidates = [path for path in candidates if split_of_parts(path) == split] or candidates
        self.missing = AMBIGUOUS if candidates else NOT_FOUND
        if len(candidates) != 1:
            return None
        self.used.add(candidates[0])
        return candidates[0]

    def unused(self) -> Iterator[RawSample]:
        """Broken samples for the images that no annotation named."""
        unnamed = (image for image in self.images if image not in self.used)
        return (broken(image, "image without annotation", split=split_of_parts(image)) for image in unnamed)


def _folded(name: str) -> str:
    return nfc(nfc(name).casefold())


def _longest_end(candidates: list[str], named: PurePosixPath, *, any_suffix: bool) -> list[str]:
    """The candidates that share the longest end of the path; among equals, those that share it letter by letter."""

    def parts(path: PurePosixPath) -> tuple[str, ...]:
        return (path.with_suffix("") if any_suffix else path).parts

    def shared(path: str) -> tuple[int, int, int]:
        ends = list(zip(reversed(parts(PurePosixPath(path))), reversed(parts(named)), strict=False))
        same = (
            [a == b for a, b in ends],
            [nfc(a) == nfc(b) for a, b in ends],
            [_folded(a) == _folded(b) for a, b in ends],
        )
        exact, composed, folded = (_run(flags) for flags in same)
        return folded, composed, exact

    ranks = {path: shared(path) for path in candidates}
    return [path for path in candidates if ranks[path] == max(ranks.values())]


def _run(flags: Iterable[bool]) -> int:
    """The number of leading flags that are set."""
    count = 0
    for flag in flags:
        if not flag:
            break
        count += 1
    return count


def _nearest(candidates: list[str], near: str) -> list[str]:
    """The candidates in the annotation's folder or, if there are none, in the smallest folder that holds both."""
    for parent in PurePosixPath(near).parents:
        if inside := [path for path in candidates if parent in PurePosixPath(path).parents]:
            direct = [path for path in inside if PurePosixPath(path).parent == parent]
            return direct or inside
    return candidates
