"""Shifts: simulated changes of traffic. Each changes an image or a text at strength 1, 2 or 3.

Shifts of images do not move objects. After Rabanser et al., Failing loudly, NeurIPS 2019, and Hendrycks and Dietterich,
Benchmarking neural network robustness to common corruptions and perturbations, ICLR 2019.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, JpegImagePlugin

from loopline.tasks import image

Rng = np.random.Generator
ImageShift = Callable[[NDArray[np.uint8], int, Rng], NDArray[np.uint8]]
TextShift = Callable[[str, int, Rng], str]


def _clipped(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(np.rint(pixels), 0, 255), np.uint8)


def _noise(pixels: NDArray[np.uint8], strength: int, rng: Rng) -> NDArray[np.uint8]:
    return _clipped(pixels + rng.normal(0, (10, 35, 80)[strength - 1], pixels.shape))


def _blur(pixels: NDArray[np.uint8], strength: int, _: Rng) -> NDArray[np.uint8]:
    side = max(pixels.shape[:2])
    flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    radius = (0.012, 0.03, 0.06)[strength - 1] * side
    return np.asarray(Image.fromarray(flat).filter(ImageFilter.GaussianBlur(radius)), np.uint8).reshape(pixels.shape)


def _dark(pixels: NDArray[np.uint8], strength: int, _: Rng) -> NDArray[np.uint8]:
    return _clipped(pixels * (0.8, 0.5, 0.25)[strength - 1])


def _bright(pixels: NDArray[np.uint8], strength: int, _: Rng) -> NDArray[np.uint8]:
    return _clipped(pixels + (15.0, 50.0, 110.0)[strength - 1])


def _contrast(pixels: NDArray[np.uint8], strength: int, _: Rng) -> NDArray[np.uint8]:
    mean = float(pixels.mean())
    return _clipped(mean + (pixels - mean) * (0.75, 0.45, 0.2)[strength - 1])


def _dead_pixels(pixels: NDArray[np.uint8], strength: int, rng: Rng) -> NDArray[np.uint8]:
    dead = rng.random(pixels.shape[:2]) < (0.01, 0.05, 0.2)[strength - 1]
    changed = pixels.copy()
    changed[dead] = rng.integers(0, 2, (int(dead.sum()), 1)) * 255
    return changed


def _pixelated(pixels: NDArray[np.uint8], strength: int, _: Rng) -> NDArray[np.uint8]:
    flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    height, width = flat.shape[:2]
    small = (0.7, 0.45, 0.25)[strength - 1]
    opened = Image.fromarray(flat)
    smaller = opened.resize((max(1, round(width * small)), max(1, round(height * small))), Image.Resampling.BOX)
    return np.asarray(smaller.resize((width, height), Image.Resampling.NEAREST), np.uint8).reshape(pixels.shape)


def _typos(text: str, strength: int, rng: Rng) -> str:
    letters = list(text)
    for position in np.flatnonzero(rng.random(len(letters)) < (0.03, 0.1, 0.25)[strength - 1]):
        kind = rng.integers(3)
        if kind == 0:
            letters[position] = ""
        elif kind == 1:
            letters[position] = chr(int(rng.integers(97, 123)))
        elif position + 1 < len(letters):
            letters[position], letters[position + 1] = letters[position + 1], letters[position]
    return "".join(letters) or text


def _upper(text: str, strength: int, rng: Rng) -> str:
    return text.upper() if rng.random() < (0.1, 0.4, 1.0)[strength - 1] else text


def _cut(text: str, strength: int, _: Rng) -> str:
    return text[: max(1, round(len(text) * (0.8, 0.5, 0.25)[strength - 1]))]


def _plain(text: str, strength: int, rng: Rng) -> str:
    """Replace characters outside ASCII by a question mark, as a wrong decoding does."""
    share = (0.2, 0.6, 1.0)[strength - 1]
    return "".join(c if c < "\x80" or rng.random() >= share else "?" for c in text)


def _marked(text: str, strength: int, rng: Rng) -> str:
    """Add markup, as another system may leave it in a text."""
    return f"<p>{text}</p> #{rng.integers(1000)}" if rng.random() < (0.1, 0.4, 1.0)[strength - 1] else text


IMAGES: dict[str, ImageShift] = {
    "noise": _noise,
    "blur": _blur,
    "dark": _dark,
    "bright": _bright,
    "contrast": _contrast,
    "dead-pixels": _dead_pixels,
    "pixelated": _pixelated,
}
TEXTS: dict[str, TextShift] = {"typos": _typos, "upper": _upper, "cut": _cut, "plain": _plain, "markup": _marked}


def shifted_image(data: bytes, name: str | None, strength: int, rng: Rng) -> bytes:
    """An encoded image after the shift `name`, of the same size. A JPEG keeps its format and quality; others become PNG.

    If `name` is None the image is only encoded again. Compared with that, a shifted image's bytes differ only by its content.
    """
    with Image.open(io.BytesIO(data)) as opened:
        channels = 1 if opened.mode in ("L", "1", "I", "I;16") else 3
        options: dict[str, Any] = {"format": "PNG"}
        if isinstance(opened, JpegImagePlugin.JpegImageFile):
            sampling = JpegImagePlugin.get_sampling(opened)
            options = {"format": "JPEG", "qtables": opened.quantization, "subsampling": sampling}
    pixels = image.decode(data, channels)
    if name:
        pixels = IMAGES[name](pixels, strength, rng)
    out = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(out, **options)
    return out.getvalue()


def shifted(sample: bytes | str, name: str, strength: int, rng: Rng) -> bytes | str:
    """An encoded image or a text after the shift `name`."""
    return TEXTS[name](sample, strength, rng) if isinstance(sample, str) else shifted_image(sample, name, strength, rng)


def names(*, texts: bool) -> tuple[str, ...]:
    """The names of the shifts of texts, or of images."""
    return tuple(TEXTS) if texts else tuple(IMAGES)
