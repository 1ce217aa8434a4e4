"""`digits`: scikit-learn's 1,797 handwritten digits, scaled to 28 x 28 pixels like other digit sets.

The originals are the test part of the UCI set "Optical Recognition of Handwritten Digits". They have no published split.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loopline.data.raw import RawSample
from loopline.errors import LooplineError

SIDE = 28  # pixels
FILE = "datasets/data/digits.csv.gz"


def load() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images (1797, 8, 8) with ink from 0 to 16, and labels (1797,), as scikit-learn's `load_digits` returns them.

    Reading its file takes 0.02 s, importing scikit-learn 5 s. Raises LooplineError if the file is missing.
    """
    spec = importlib.util.find_spec("sklearn")
    file = Path(spec.submodule_search_locations[0]) / FILE if spec and spec.submodule_search_locations else None
    if file is None or not file.is_file():
        raise LooplineError(f"scikit-learn with its {FILE} is not installed: run `make setup`")
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def read() -> Iterator[RawSample]:
    """Yield each digit as a greyscale PNG, white on black, labelled "0" to "9"."""
    for index, (ink, label) in enumerate(zip(*load(), strict=True)):
        grey = np.round(ink * (255 / 16)).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "PNG")
        yield RawSample(f"{index:04d}.png", buffer.getvalue(), None, str(label), None, None)
