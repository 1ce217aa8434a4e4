"""IDX, the format of MNIST: `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, gzipped or not.

Format: http://yann.lecun.com/exdb/mnist (magic number with type and dimensions, big-endian sizes, then the bytes).
"""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Iterator
from itertools import count
from typing import IO, cast

import numpy as np

from loopline.data.formats import png
from loopline.data.formats.common import Folder, Format, class_names, split_of_file
from loopline.data.raw import RawSample
from loopline.errors import LooplineError

_IMAGES = re.compile(r"images([-.])idx[34](?=[-.]ubyte)", re.IGNORECASE)
_UINT8 = 8  # IDX's type code
_AT_ONCE = 1024


def _pairs(folder: Folder) -> dict[str, tuple[str, str]]:
    """Name without .gz -> files of images and labels. A file that is there twice, gzipped and not, counts once."""
    there = {name.removesuffix(".gz"): name for name in reversed(folder.files)}
    pairs = {}
    for stem, name in sorted(there.items()):
        labels = _IMAGES.sub(r"labels\1idx1", stem)
        if labels != stem and labels in there:
            pairs[stem] = (name, there[labels])
    return pairs


def _read(folder: Folder) -> Iterator[RawSample]:
    names = class_names(folder, ("classes.txt", "labels.txt"))
    for stem, (images, labels) in _pairs(folder).items():
        split = split_of_file(stem)
        with _open(folder, images) as pixels, _open(folder, labels) as marks:
            shape, (many, *_) = _shape(pixels, images), _shape(marks, labels)
            if shape[0] != many or len(shape) not in (3, 4) or shape[3:] not in ((), (1,), (3,)):
                raise LooplineError(f"{folder.root / images} has shape {shape}, {labels} has {many} labels: not a pair")
            numbers = count()
            for start in range(0, many, _AT_ONCE):
                rows = min(_AT_ONCE, many - start)
                block = _bytes(pixels, (rows, *shape[1:]), images)
                for image, mark in zip(block, _bytes(marks, (rows,), labels), strict=True):
                    label = _name(int(mark), names, labels)
                    yield RawSample(f"{stem}:{next(numbers)}", png.encode(image), None, label, None, split)


def _open(folder: Folder, name: str) -> IO[bytes]:
    path = folder.root / name
    return cast(IO[bytes], gzip.GzipFile(path)) if name.endswith(".gz") else path.open("rb")


def _shape(file: IO[bytes], name: str) -> tuple[int, ...]:
    """The shape that the header states; leaves the file at its first value. Raises LooplineError."""
    try:
        zero, kind, dimensions = struct.unpack(">HBB", file.read(4))
        shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
    except (struct.error, OSError, EOFError) as error:
        raise LooplineError(f"{name} is not an IDX file: {error}") from error
    if zero != 0 or kind != _UINT8 or not shape:
        raise LooplineError(f"{name} is not an IDX file of unsigned bytes: it starts with {zero}, type {kind}")
    return shape


def _bytes(file: IO[bytes], shape: tuple[int, ...], name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    size = int(np.prod(shape))
    try:
        data = file.read(size)
    except (OSError, EOFError) as error:
        raise LooplineError(f"{name} is damaged: {error}. Copy or download it again") from error
    if len(data) != size:
        raise LooplineError(f"{name} ends too early: copy or download it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _name(mark: int, names: list[str] | None, file: str) -> str:
    if names is None:
        return str(mark)
    if mark >= len(names):
        raise LooplineError(f"{file} has class {mark}, but only {len(names)} classes are named in classes.txt")
    return names[mark]


IDX = Format(
    name="IDX",
    tasks=frozenset({"classification"}),
    layout="IDX: train-images-idx3-ubyte with train-labels-idx1-ubyte, t10k-... likewise, gzipped or not",
    detect=lambda folder: bool(_pairs(folder)),
    read=_read,
)
