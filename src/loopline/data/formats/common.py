"""Shared parts of the readers: listing a folder, split names, class names, text files, files as samples."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import stat
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from loopline.data.raw import RawBox, RawSample
from loopline.errors import LooplineError
from loopline.tables.encoding import decode as decode_text
from loopline.tasks.base import Content, Task, TruthColumn
from loopline.tasks.image import FORMATS

IMAGES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
)
MAX_BYTES = 64 * 2**20  # of a file that is one sample
DOCUMENTS = re.compile(
    r"(readme|licen[cs]e|notice|citation|changelog|copying)(\.(md|txt|rst|html?|pdf|docx?|adoc|cff|bib))?"
    r"|thumbs\.db|desktop\.ini",
    re.IGNORECASE,
)
SYSTEM = {  # folders that an operating system, a network drive or Python creates
    "__macosx",
    "@eadir",
    "@recycle",
    "#recycle",
    "$recycle.bin",
    "lost+found",
    "system volume information",
    "__pycache__",
}
CLASS_NAMES = re.compile(r"classes\.txt|labels\.txt|.+\.names|_darknet\.labels", re.IGNORECASE)  # one name per line
SPLITS = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "validate", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "t10k"),
}
_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
# Words that say nothing about a folder's content: `train_images` and `testset` are splits, `train_station` is a class.
PLAIN = (
    "images?|imgs?|photos?|pictures?|pics?|frames?|texts?|docs?|documents?|files?|samples?|data|dataset|set|split|folder|dir"
    "|part|fold|batch|chunk|shard|crops?|labels?|annotations?|jpe?g|png|txt|csv|tsv|jsonl?|parquet"
)
_SPLIT_WORD = re.compile(f"({'|'.join(_SPLIT_OF)})(?:{PLAIN})?")
_SIDEWAYS = range(5, 9)  # EXIF orientations that swap width and height
_ORIENTATION = 0x0112


def natural(name: str) -> tuple[list[str | int], str]:
    """Sort key: `img2` before `img10`, in any case."""
    pieces = re.split(r"(\d+)", name.casefold())
    return [int(piece) if number % 2 else piece for number, piece in enumerate(pieces)], name


@dataclass(frozen=True)
class Folder:
    """A dataset's folder: its files as `/`-separated paths relative to `root`, in natural order.

    unreadable: folders that could not be listed. left_out: path and reason of each file or folder that is not data.
    opened: the files opened by a reader. group: the column of a table that names the samples' groups.
    """

    root: Path
    files: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    opened: set[str] = field(default_factory=set, compare=False, repr=False)
    group: str | None = None

    def suffixed(self, suffixes: frozenset[str] | set[str]) -> tuple[str, ...]:
        """The files whose suffix (lower case, with its dot) is in `suffixes`."""
        return tuple(name for name in self.files if suffix(name) in suffixes)

    def read(self, name: str) -> bytes:
        """The content of one file. Raises LooplineError if it cannot be opened."""
        self.opened.add(name)
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise LooplineError(f"{self.root / name} cannot be read: {error.strerror or error}") from error

    def start(self, name: str, limit: int = 4096) -> bytes:
        """The first bytes of one file, to recognise its format; b"" if it cannot be opened."""
        try:
            with (self.root / name).open("rb") as file:
                return file.read(limit)
        except OSError:
            return b""


@dataclass(frozen=True)
class Format:
    """A dataset format: a description of its folder (`layout`), how to recognise it and how to read it.

    content and truth: the kind of its samples and of their labels, as in `tasks.base.Task`. `detect` looks at names and
    first lines. `read` yields samples in the folder's order. `advise` says why a folder that resembles this format does not
    have it; "" for any other folder.
    """

    name: str
    content: Content
    truth: TruthColumn
    layout: str
    detect: Callable[[Folder], bool]
    read: Callable[[Folder], Iterator[RawSample]]
    advise: Callable[[Folder], str] = lambda _: ""

    def fits(self, task: Task) -> bool:
        """Whether its content and truth are those of the task."""
        return (self.content, self.truth) == (task.content, task.truth)


def list_folder(root: Path) -> Folder:
    """List all files under `root`; hidden files, documents such as a readme and DVC's own files go to `left_out`.

    If `root` is a file, it alone is listed. Raises LooplineError if `root` is neither a folder nor a file.
    """
    if root.is_file():
        return Folder(root.parent, (root.name,))
    if not root.is_dir():
        raise LooplineError(f"{root} is not a folder: give the folder of the dataset")
    files: list[str] = []
    left_out: list[tuple[str, str]] = []
    unreadable: list[str] = []
    walked: set[str] = set()

    def relative(path: str | Path) -> str:
        return Path(path).relative_to(root).as_posix()

    for where, folders, names in os.walk(
        root, followlinks=True, onerror=lambda error: unreadable.append(relative(error.filename))
    ):
        walked.add(os.path.realpath(where))
        entered = []
        for name in folders:
            if reason := _unlisted(name, os.path.realpath(Path(where) / name) in walked):
                left_out.append((relative(Path(where) / name) + "/", reason))
            else:
                entered.append(name)
        folders[:] = entered
        for name in names:
            if reason := _not_data(Path(where) / name):
                left_out.append((relative(Path(where) / name), reason))
            else:
                files.append(relative(Path(where) / name))
    unreadable = [name for name in unreadable if name != "."] or unreadable
    return Folder(root, tuple(sorted(files, key=natural)), tuple(sorted(unreadable)), tuple(sorted(left_out)))


def _unlisted(folder: str, walked: bool) -> str | None:
    if folder.startswith("."):
        return "hidden folder"
    if folder.lower() in SYSTEM:
        return "system folder"
    return "link to a folder that is already read" if walked else None


def _not_data(path: Path) -> str | None:
    """The reason why a file is not data, None if it is data."""
    if path.name.startswith("."):
        return "hidden file"
    if path.suffix == ".dvc":
        return "DVC file"
    if DOCUMENTS.fullmatch(path.name):
        return "document (readme, licence, ...)"
    try:
        return None if stat.S_ISREG(path.stat().st_mode) else "not a regular file"
    except OSError:  # a broken link: the reader counts it
        return None


def suffix(name: str) -> str:
    """The suffix in lower case, with its dot."""
    return PurePosixPath(name).suffix.lower()


def split_of_folder(name: str) -> str | None:
    """The split that the name of a folder or a table cell stands for (`train`, `valid`, `test_images`), or None."""
    splits = {_split_of_word(word) for word in words(name) if not re.fullmatch(PLAIN, word)}
    return splits.pop() if len(splits) == 1 else None


def words(name: str) -> list[str]:
    """The words of a file's or folder's name in lower case, without numbers: `reviewsTest_2` gives reviews, test."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower().replace("t10k", "test")
    return [word for word in re.split(r"[\W\d_]+", spaced) if word]


def _split_of_word(word: str) -> str | None:
    match = _SPLIT_WORD.fullmatch(word)
    return _SPLIT_OF[match[1]] if match else None


def split_of_parts(name: str) -> str | None:
    """The split that a folder in a path stands for, the innermost if there are several; None if there is none."""
    splits = [split for part in PurePosixPath(name).parts[:-1] if (split := split_of_folder(part))]
    return splits[-1] if splits else None


def split_of_file(name: str) -> str | None:
    """The split in a file's name (`reviews_train.csv`, `testset.csv`), else in its folders; None if the name has two."""
    # Letters of another script may adjoin the word.
    splits = {_split_of_word(word) for word in re.findall("[a-z]+", " ".join(words(PurePosixPath(name).stem)))} - {None}
    if not splits:
        return split_of_parts(name)
    return splits.pop() if len(splits) == 1 else None


def lines(data: bytes) -> list[str]:
    r"""The lines of a text file. Only \n and \r\n end a line; U+0085, U+2028 and the like belong to the text."""
    pieces = decode_text(data).split("\n")
    if pieces[-1] == "":
        pieces.pop()
    return [line.removesuffix("\r") for line in pieces]


def head(path: Path, limit: int = 65536) -> list[str]:
    """The first complete lines of a text file, to recognise its format."""
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
    """The sample for a file that holds one image, or one text; a broken sample if it cannot be read."""
    path = folder.root / name
    folder.opened.add(name)
    try:
        if path.stat().st_size > MAX_BYTES:
            return broken(name, f"file over {MAX_BYTES // 2**20} MB", split=split)
        data = path.read_bytes()
    except OSError:  # a broken link, no permission
        return broken(name, "file that cannot be opened", split=split)
    if text:
        return RawSample(name, None, decode_text(data), label, None, split)
    return RawSample(name, data, None, label, boxes, split, size)


def broken(path: str, problem: str, *, split: str | None = None) -> RawSample:
    """A placeholder for a sample that cannot be used, with the reason."""
    return RawSample(path, None, None, None, None, split, problem=problem)


def file_problem(error: Exception) -> str:
    """The reason to set aside a sample whose annotation raised `error`."""
    return "file that cannot be opened" if isinstance(error, LooplineError) else str(error.args[0])


def load_json(folder: Folder, name: str) -> Any:
    """The content of a JSON file in UTF-8, UTF-16 or UTF-32. Raises LooplineError if it is not valid."""
    try:
        return json.loads(folder.read(name).removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError) as error:
        raise LooplineError(f"{folder.root / name} is not valid JSON: {error}") from error


def json_text(data: bytes) -> str:
    """The text of a JSON file, or of its first bytes, decoded as by `load_json`, without byte order mark and leading space."""
    return data.decode(json.detect_encoding(data), "replace").lstrip("\ufeff \t\r\n")


def upright_size(data: bytes) -> tuple[int, int] | None:
    """Width and height after EXIF rotation, from the image's header; None if the header is broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
    except Exception:  # a broken header raises anything; cleaning decodes the image and reports it
        return None
    return (height, width) if sideways else (width, height)


def nfc(name: str) -> str:
    """The name in composed characters (NFC), since macOS writes the same name in decomposed ones."""
    return unicodedata.normalize("NFC", name)


def names_classes(name: str) -> bool:
    """Whether the file's name is one used for lists of class names."""
    return CLASS_NAMES.fullmatch(PurePosixPath(name).name) is not None


def class_names(folder: Folder, files: Iterable[str]) -> dict[int, str]:
    """Class number -> name, from files with one name per line. Raises LooplineError if two files contradict each other."""
    names = NumberedNames()
    for file in files:
        listed = [line.strip() for line in lines(folder.read(file))]
        while listed and not listed[-1]:
            listed.pop()
        if not all(listed):
            raise LooplineError(
                f"{folder.root / file} has an empty line: write one class name per line, starting with class 0"
            )
        names.add(dict(enumerate(listed)), folder.root / file)
    return names.names


@dataclass
class NumberedNames:
    """Class names by number, from several files that must agree."""

    names: dict[int, str] = field(default_factory=dict)
    sources: dict[int, Path] = field(default_factory=dict)

    def add(self, names: dict[int, str], source: Path) -> None:
        """Add the names of one file. Raises LooplineError if an earlier file has another name for a number."""
        for number, name in names.items():
            if nfc(self.names.setdefault(number, name)) != nfc(name):
                raise LooplineError(
                    f"class {number} is {self.names[number]!r} in {self.sources[number]} and {name!r} in {source}: "
                    "keep the right file and remove the other"
                )
            self.sources.setdefault(number, source)
