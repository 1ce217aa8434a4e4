"""What the readers share: listing a folder, names of splits, text files, files as samples."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from loopline.data.raw import RawBox, RawSample
from loopline.errors import LooplineError
from loopline.tables.encoding import decode as decode_text
from loopline.tasks.image import FORMATS

IMAGES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
)
MAX_BYTES = 64 * 2**20  # of one file that is one sample
BESIDES = re.compile(r"(readme|licen[cs]e|notice|citation|changelog|copying|thumbs\.db|desktop\.ini)", re.IGNORECASE)
SPLITS = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "t10k"),
}
_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
_SIDEWAYS = range(5, 9)  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112


def natural(name: str) -> tuple[list[str | int], str]:
    """Sort key: `img2` before `img10`, whatever the case."""
    pieces = re.split(r"(\d+)", name.casefold())
    return [int(piece) if number % 2 else piece for number, piece in enumerate(pieces)], name


@dataclass(frozen=True)
class Folder:
    """A dataset's folder: its files as paths relative to `root`, with `/`, in natural order."""

    root: Path
    files: tuple[str, ...]

    def suffixed(self, suffixes: frozenset[str] | set[str]) -> tuple[str, ...]:
        """The files whose suffix, in lower case and with its dot, is one of `suffixes`."""
        return tuple(name for name in self.files if suffix(name) in suffixes)

    def read(self, name: str) -> bytes:
        """The content of one file."""
        return (self.root / name).read_bytes()


@dataclass(frozen=True)
class Format:
    """A dataset format: what a folder of it looks like (`layout`), how it is told from others, how it is read.

    `detect` looks at names and first lines. `read` yields samples in the folder's order.
    """

    name: str
    tasks: frozenset[str]
    layout: str
    detect: Callable[[Folder], bool]
    read: Callable[[Folder], Iterator[RawSample]]


def list_folder(root: Path) -> Folder:
    """All files under `root`. Hidden ones, readmes, licences and DVC's own are not data and are left out."""
    found, walked = [], set()
    for where, folders, names in os.walk(root, followlinks=True):
        walked.add(os.path.realpath(where))
        folders[:] = [
            name
            for name in folders
            if not name.startswith((".", "__MACOSX")) and os.path.realpath(Path(where) / name) not in walked
        ]
        data = (name for name in names if not name.startswith(".") and not name.endswith(".dvc"))
        found += [(Path(where) / name).relative_to(root).as_posix() for name in data if not BESIDES.match(name)]
    return Folder(root, tuple(sorted(found, key=natural)))


def suffix(name: str) -> str:
    """The suffix in lower case, with its dot."""
    return PurePosixPath(name).suffix.lower()


def split_of_folder(name: str) -> str | None:
    """The split that a folder's (or a column's) whole name stands for: `train`, `valid`, `test2017`, ... or None."""
    word = re.fullmatch(r"(t10k|[a-z]+?)[-_]?\d*", name.strip().lower())
    return _SPLIT_OF.get(word[1]) if word else None


def split_of_parts(name: str) -> str | None:
    """The split that one of the folders in a path stands for; the innermost counts."""
    found = [split for part in PurePosixPath(name).parts[:-1] if (split := split_of_folder(part))]
    return found[-1] if found else None


def split_of_file(name: str) -> str | None:
    """The split named by one word of a file's name (`reviews_train.csv`), else by its folders; of two, None."""
    words = re.findall(r"t10k|[a-z]+", PurePosixPath(name).stem.lower())
    found = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    if not found:
        return split_of_parts(name)
    return found.pop() if len(found) == 1 else None


def lines(data: bytes) -> list[str]:
    r"""The lines of a text file, ended by \n or \r\n only: U+0085, U+2028 and their like are characters of a text."""
    found = decode_text(data).split("\n")
    if found[-1] == "":
        found.pop()
    return [line.removesuffix("\r") for line in found]


def head(path: Path, limit: int = 65536) -> list[str]:
    """The first whole lines of a text file, for a look at its format."""
    with path.open("rb") as file:
        data = file.read(limit)
    if len(data) == limit:
        data = data.rpartition(b"\n")[0] or data
    return lines(data)


def file_sample(
    folder: Folder,
    name: str,
    *,
    text: bool = False,
    label: str | None = None,
    boxes: tuple[RawBox, ...] | None = None,
    split: str | None = None,
    size: tuple[int, int] | None = None,
) -> RawSample:
    """A file that is one sample: an image, or one text."""
    path = folder.root / name
    try:
        if path.stat().st_size > MAX_BYTES:
            return broken(name, f"file over {MAX_BYTES // 2**20} MB", split=split)
        data = path.read_bytes()
    except OSError:  # a link to nowhere, no permission
        return broken(name, "file that cannot be opened", split=split)
    if text:
        return RawSample(name, None, decode_text(data), label, None, split)
    return RawSample(name, data, None, label, boxes, split, size)


def broken(path: str, problem: str, *, split: str | None = None) -> RawSample:
    """What stands in for a sample that could not be read."""
    return RawSample(path, None, None, None, None, split, problem=problem)


def upright_size(data: bytes) -> tuple[int, int] | None:
    """Width and height after EXIF rotation, from the image's header; None where it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
    except Exception:  # whatever a broken header raises: cleaning decodes the image and says what is wrong
        return None
    return (height, width) if sideways else (width, height)


def class_names(folder: Folder, names: tuple[str, ...]) -> list[str] | None:
    """One class name a line, from the first of the files `names` that the folder has."""
    for name in names:
        if name in folder.files:
            found = [line.strip() for line in lines(folder.read(name))]
            return found if all(found) else _blank(folder, name)
    return None


def _blank(folder: Folder, name: str) -> list[str]:
    raise LooplineError(f"{folder.root / name} has an empty line: write one class name a line, the first for class 0")
