"""IDX, the format of MNIST: `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, gzipped or not.

Format: http://yann.lecun.com/exdb/mnist (magic number with type and dimensions, big-endian sizes, then the bytes).
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from itertools import count
from typing import IO, cast

import numpy as np

from loopline.data.formats import png
from loopline.data.formats.common import Folder, Format, class_names, names_classes, split_of_file
from loopline.data.raw import RawSample
from loopline.errors import LooplineError
from loopline.tasks.image import MAX_PIXELS

_IMAGES = re.compile(r"images([-.])idx[34](?=[-.]ubyte)", re.IGNORECASE)
_UINT8 = 8  # IDX's type code
_AT_ONCE = 2**20  # bytes of pixels read at a time
_DAMAGE = (OSError, EOFError, zlib.error)  # raised for a truncated or changed gzip file


def _pairs(folder: Folder) -> dict[str, tuple[str, str]]:
    """Name without .gz -> files of images and labels. A file that exists both gzipped and unpacked counts once."""
    files = {name.removesuffix(".gz"): name for name in reversed(folder.files)}
    pairs = {}
    for stem, name in sorted(files.items()):
        labels = _IMAGES.sub(r"labels\1idx1", stem)
        if labels != stem and labels in files:
            pairs[stem] = (name, files[labels])
    return pairs


def _read(folder: Folder) -> Iterator[RawSample]:
    names = class_names(folder, filter(names_classes, folder.files))
    for stem, (images, labels) in _pairs(folder).items():
        split = split_of_file(stem)
        with _open(folder, images) as pixels, _open(folder, labels) as marks:
            shape, of_labels = _shape(pixels, images), _shape(marks, labels)
            if shape[:1] != of_labels or len(shape) not in (3, 4) or shape[3:] not in ((), (1,), (3,)):
                raise LooplineError(f"{folder.root / images} has shape {shape}, {labels} has {of_labels}: not a pair")
            size = math.prod(shape[1:])
            if not 0 < size <= MAX_PIXELS:
                raise LooplineError(f"{folder.root / images} has images of {size:,} bytes, not 1 to {MAX_PIXELS:,}")
            numbers, rows = count(), max(1, _AT_ONCE // size)
            for start in range(0, shape[0], rows):
                many = min(rows, shape[0] - start)
                block = _bytes(pixels, (many, *shape[1:]), images)
                for image, mark in zip(block, _bytes(marks, (many,), labels), strict=True):
                    label = _name(int(mark), names, labels)
                    yield RawSample(f"{stem}:{next(numbers)}", png.encode(image), None, label, None, split)
            _end(pixels, images)
            _end(marks, labels)


def _open(folder: Folder, name: str) -> IO[bytes]:
    path = folder.root / name
    if not os.access(path, os.R_OK, effective_ids=True):
        raise LooplineError(f"{path} cannot be opened")
    folder.opened.add(name)
    return cast(IO[bytes], gzip.GzipFile(path)) if name.endswith(".gz") else path.open("rb")


def _shape(file: IO[bytes], name: str) -> tuple[int, ...]:
    """Read the header and return the shape it states. Raises LooplineError if it is not an IDX header of bytes."""
    try:
        zero, kind, dimensions = struct.unpack(">HBB", file.read(4))
        shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
    except (struct.error, *_DAMAGE) as error:
        raise LooplineError(f"{name} is not an IDX file: {error}") from error
    if zero != 0 or kind != _UINT8 or not shape:
        raise LooplineError(f"{name} is not an IDX file of unsigned bytes: it starts with {zero}, type {kind}")
    return shape


def _bytes(file: IO[bytes], shape: tuple[int, ...], name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    size = math.prod(shape)
    data = _take(file, size, name)
    if len(data) != size:
        raise LooplineError(f"{name} ends too early: copy or download it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _end(file: IO[bytes], name: str) -> None:
    if _take(file, 1, name):
        raise LooplineError(f"{name} holds more than its header states: copy or download it again")


def _take(file: IO[bytes], size: int, name: str) -> bytes:
    try:
        return file.read(size)
    except _DAMAGE as error:
        raise LooplineError(f"{name} is damaged: {error}. Copy or download it again") from error


def _name(mark: int, names: dict[int, str], file: str) -> str:
    if not names:
        return str(mark)
    if mark >= len(names):
        raise LooplineError(f"{file} has class {mark}, but classes.txt names only {len(names)} classes")
    return names[mark]


IDX = Format(
    name="IDX",
    content="image",
    truth="label",
    layout="IDX: train-images-idx3-ubyte with train-labels-idx1-ubyte, t10k-... likewise, gzipped or not",
    detect=lambda folder: bool(_pairs(folder)),
    read=_read,
)
