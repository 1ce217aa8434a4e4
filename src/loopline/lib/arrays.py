"""Type names for the kinds of arrays that many packages use."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]  # a model's inputs or outputs: tensors by name, with one row for each sample
Pixels = NDArray[np.uint8]  # (height, width, channels)
Boxes = NDArray[np.float32]  # (n, 4): left, top, right, bottom, in pixels
