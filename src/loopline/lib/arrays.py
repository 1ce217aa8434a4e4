"""Names for the kinds of arrays that many rooms pass on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]  # a model's inputs or outputs: tensors by name, a row a sample
Pixels = NDArray[np.uint8]  # (height, width, channels)
Boxes = NDArray[np.float32]  # (n, 4): left, top, right, bottom, in pixels
