"""The common style of all pictures, and their conversion to small PNG files.

The same input gives the same bytes: style and font do not depend on the user's matplotlibrc, and the file has no date or
version. The colours are those of Okabe and Ito (2008), which colour-blind readers can distinguish.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loopline.lib import files

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, SOFT, GREY, FAINT = "#1c2128", "#5b6472", "#b8c0ca", "#dfe3e8"
MAX_BYTES = 150_000  # pictures are committed to git, and loaded over slow connections
STYLE = {
    "figure.titlesize": 10,
    "figure.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.08,  # inches
    "figure.constrained_layout.w_pad": 0.08,
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # dollar signs in a text are plain characters
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}


@contextmanager
def sheet(path: Path, width: float, height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple[Any, Any]]:
    """Yield a figure of `width` x `height` inches and its axes (rows * columns,); save it to `path` at the end of the block."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False).ravel()
        _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    """Save the figure with a palette of 256 colours, at the finest resolution whose file is at most MAX_BYTES large."""
    from PIL import Image

    for dots in (110, 90, 75, 60):
        drawn, packed = io.BytesIO(), io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # characters that the font lacks appear as boxes
            figure.savefig(drawn, format="png", dpi=dots, metadata={"Software": None})
        with Image.open(drawn) as image:
            opaque = image.convert("RGB")
        opaque.quantize(256, dither=Image.Dither.NONE).save(packed, format="png", optimize=True)
        if packed.tell() <= MAX_BYTES:
            break
    files.write(path, packed.getvalue())
