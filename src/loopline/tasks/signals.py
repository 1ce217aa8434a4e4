"""Drift signals: a few figures a sample, from its input and its answer. Numpy only, constant work a sample.

A signal that a request does not carry (the bytes of an image that came as a tensor) is left out, not guessed.
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
CHUNK = 1 << 15  # pixels


def signals(
    inputs: dict[str, NDArray[Any]],
    outputs: dict[str, NDArray[Any]],
    spec: ModelSpec,
    originals: Sequence[bytes | str] | None = None,
    sizes: NDArray[Any] | None = None,
) -> Signals:
    """Every signal of n samples, each float64 (n,).

    inputs and outputs: the graph's tensors, padding included. originals: the encoded images, or the texts, where there are any.
    sizes: (n, 2) width and height of the upright original images, where they are known.
    """
    found = of_images(inputs["image"]) if spec.image else _of_ids(inputs["ids"], spec)
    if sizes is not None and spec.image:
        found["aspect"] = sizes[:, 0] / sizes[:, 1].astype(np.float64)
    if originals is not None:
        found |= _of_originals(originals)
    found |= find(spec.task).output_signals(outputs, spec)
    return found | {f"embedding_{i}": column.astype(np.float64) for i, column in enumerate(outputs["embedding"].T)}


def of_images(images: NDArray[np.uint8]) -> Signals:
    """brightness and contrast (mean and standard deviation of the grey levels), sharpness, and of RGB the saturation.

    images: (n, h, w, c). Sharpness is the variance of the Laplacian (Pech-Pacheco et al., ICPR 2000); saturation the mean over
    the pixels of (max - min) / max, as in HSV.
    """
    rows, height, width, channels = images.shape
    names = ("brightness", "contrast", "sharpness", *(("saturation",) if channels == 3 else ()))
    found = {name: np.empty(rows) for name in names}
    step = max(1, CHUNK // (height * width))  # what fits the processor's cache goes four times as fast
    for start in range(0, rows, step):
        part = slice(start, start + step)
        planes = [images[part, :, :, channel].astype(np.float32) for channel in range(channels)]
        grey = planes[0]
        if channels == 3:
            red, green, blue = planes
            grey = GREY[0] * red + GREY[1] * green + GREY[2] * blue
            most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
            found["saturation"][part] = ((most - least) / np.maximum(most, 1)).mean((1, 2))
        edges = (
            grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] - 4 * grey[:, 1:-1, 1:-1]
        )
        found["brightness"][part], found["contrast"][part] = grey.mean((1, 2)), grey.std((1, 2))
        found["sharpness"][part] = edges.var((1, 2))
    return found


def _of_ids(ids: NDArray[np.int64], spec: ModelSpec) -> Signals:
    """tokens, and the share of them that the tokenizer does not know."""
    assert spec.text is not None, "a text model's specification has a text input"
    tokens = (ids != spec.text.pad_id).sum(1)
    return {
        "tokens": tokens.astype(np.float64),
        "unknown": (ids == spec.text.unknown_id).sum(1) / np.maximum(tokens, 1),
    }


def _of_originals(originals: Sequence[bytes | str]) -> Signals:
    """bytes; of texts also their characters and the shares of upper case, digits, punctuation and what is not ASCII."""
    found = {
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
        found |= {"characters": length} | {k: np.array(v) / np.maximum(length, 1) for k, v in shares.items()}
    return {name: values.astype(np.float64) for name, values in found.items()}
