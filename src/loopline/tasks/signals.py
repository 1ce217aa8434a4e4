"""Drift signals: a few figures for each sample, from its input and its answer. Numpy only, constant work per sample.

A signal that a request does not carry (the number of bytes of an image that came as a tensor) is left out, not guessed.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline.tasks import find
from loopline.tasks.spec import ModelSpec

Signals = dict[str, NDArray[np.float64]]
CLASS = "predicted_class"  # the only signal whose values have no order
FLAT = 1.0  # grey levels: an image with a smaller standard deviation shows nothing
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma
CHUNK = 1 << 15  # pixels at a time: they fit the processor's cache, which is four times as fast


def signals(
    inputs: dict[str, NDArray[Any]],
    outputs: dict[str, NDArray[Any]],
    spec: ModelSpec,
    originals: Sequence[bytes | str] | None = None,
    sizes: NDArray[Any] | None = None,
) -> Signals:
    """Return every signal of n samples by name, each float64 (n,).

    inputs and outputs: the graph's tensors, padding included. originals: the encoded images or the texts, if available.
    sizes: (n, 2) width and height of the upright original images, if available.
    """
    by_name = of_images(inputs["image"]) if spec.image else _of_ids(inputs["ids"], spec)
    if sizes is not None and spec.image:
        by_name["aspect"] = sizes[:, 0] / sizes[:, 1].astype(np.float64)
    if originals is not None:
        by_name |= _of_originals(originals)
    by_name |= find(spec.task).output_signals(outputs, spec)
    return by_name | {f"embedding_{i}": column.astype(np.float64) for i, column in enumerate(outputs["embedding"].T)}


def of_images(images: NDArray[np.uint8]) -> Signals:
    """Return brightness and contrast (mean and standard deviation of the grey levels), sharpness, and for RGB the saturation.

    images: (n, h, w, c). Sharpness is the variance of the Laplacian (Pech-Pacheco et al., ICPR 2000). Saturation is the mean
    over the pixels of (max - min) / max, as in HSV.
    """
    rows, height, width, channels = images.shape
    names = ("brightness", "contrast", "sharpness", *(("saturation",) if channels == 3 else ()))
    by_name = {name: np.empty(rows) for name in names}
    step = max(1, CHUNK // (height * width))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        planes = [images[part, :, :, channel].astype(np.float32) for channel in range(channels)]
        grey = planes[0]
        if channels == 3:
            red, green, blue = planes
            grey = GREY[0] * red + GREY[1] * green + GREY[2] * blue
            brightest, darkest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
            by_name["saturation"][part] = ((brightest - darkest) / np.maximum(brightest, 1)).mean((1, 2))
        edges = (
            grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] - 4 * grey[:, 1:-1, 1:-1]
        )
        by_name["brightness"][part], by_name["contrast"][part] = grey.mean((1, 2)), grey.std((1, 2))
        by_name["sharpness"][part] = edges.var((1, 2))
    return by_name


def _of_ids(ids: NDArray[np.int64], spec: ModelSpec) -> Signals:
    """Return the number of tokens, and the share of them that the tokenizer does not know."""
    assert spec.text is not None, "a text model's specification has a text input"
    tokens = (ids != spec.text.pad_id).sum(1)
    return {
        "tokens": tokens.astype(np.float64),
        "unknown": (ids == spec.text.unknown_id).sum(1) / np.maximum(tokens, 1),
    }


def _of_originals(originals: Sequence[bytes | str]) -> Signals:
    """Return bytes; for texts also characters and the shares of upper case, digits, punctuation and non-ASCII characters."""
    figures = {
        "bytes": np.array([len(x) if isinstance(x, bytes) else len(x.encode("utf-8", "replace")) for x in originals])
    }
    texts = [x for x in originals if isinstance(x, str)]
    if texts:
        length = np.array([len(text) for text in texts])
        shares = {
            "upper": [sum(map(str.isupper, text)) for text in texts],
            "digits": [sum(map(str.isdigit, text)) for text in texts],
            "punctuation": [sum(c in string.punctuation for c in text) for text in texts],
            "not_ascii": [sum(c > "\x7f" for c in text) for text in texts],
        }
        figures |= {"characters": length} | {k: np.array(v) / np.maximum(length, 1) for k, v in shares.items()}
    return {name: values.astype(np.float64) for name, values in figures.items()}
