"""Turn encoded images into the pixels that a model sees, in training, calibration, parity check and server alike."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from loopline.lib.arrays import Pixels
from loopline.tasks.spec import ImageInput

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # no others: every decoder can be attacked
MAX_PIXELS = 50_000_000


class UnreadableImage(ValueError):
    """The bytes are not an accepted image. The message gives the reason."""


class TooLarge(UnreadableImage):
    """The image has too many pixels. It was not decoded."""


class TooManyFrames(UnreadableImage):
    """The image is animated."""


def decode(
    data: bytes,
    channels: int,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
    max_frames: int | None = None,
) -> Pixels:
    """Return the upright image as uint8 (height, width, channels), RGB or grey.

    The bytes decide the format, never a file name. EXIF rotation is applied, CMYK and palettes become RGB, 16 bits become 8,
    transparency is laid on white. Only the first frame is used. Raises UnreadableImage, TooLarge, TooManyFrames.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about broken metadata, which does not matter here
            with Image.open(io.BytesIO(data), formats=formats) as image:
                if image.width * image.height > max_pixels:
                    raise TooLarge(f"{image.width}x{image.height} pixels, at most {max_pixels} are accepted")
                # Phones write MPO files: a JPEG with further pictures behind it. The first one is the photo.
                frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
                if max_frames is not None and frames > max_frames:
                    raise TooManyFrames("an animated image: send one frame")
                ImageOps.exif_transpose(image, in_place=True)
                return _to_uint8(image, channels)
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:  # Pillow checks a limit of its own first
        raise TooLarge(f"too many pixels, at most {max_pixels} are accepted") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"not an image in any of {', '.join(formats)}") from error
    except Exception as error:  # on broken bytes, decoders raise all kinds, from SyntaxError to struct.error
        raise UnreadableImage(f"broken image: {error}") from error


def _to_uint8(image: Image.Image, channels: int) -> Pixels:
    mode = "L" if channels == 1 else "RGB"
    if image.mode.startswith("I"):  # 16 bits a pixel, also where Pillow keeps them in 32
        deep = np.asarray(image, np.int64)
        if isinstance(clear := image.info.get("transparency"), int):  # a grey that PNG's tRNS makes transparent
            deep = np.where(deep == clear, 65535, deep)
        image = Image.fromarray((np.clip(deep, 0, 65535) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise UnreadableImage("floating-point pixels have no agreed range: save the image with 8 or 16 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    pixels = np.asarray(image if image.mode == mode else image.convert(mode), np.uint8)
    return pixels[:, :, None] if channels == 1 else pixels


def scale(width: int, height: int, spec: ImageInput) -> tuple[float, float]:
    """Return the number of input pixels per pixel of the original, along x and y."""
    across, down = spec.width / width, spec.height / height
    return (across, down) if spec.fit == "stretch" else (min(across, down), min(across, down))


def resize(image: Pixels, spec: ImageInput) -> Pixels:
    """Resize uint8 (h, w, c) to (spec.height, spec.width, c), bilinear with antialiasing; a letterbox pads right and below."""
    height, width, channels = image.shape
    across, down = scale(width, height, spec)
    target = (max(1, round(width * across)), max(1, round(height * down)))
    if target != (width, height):
        flat = image[:, :, 0] if channels == 1 else image
        small = Image.fromarray(flat).resize(target, Image.Resampling.BILINEAR)
        image = np.asarray(small, np.uint8).reshape(target[1], target[0], channels)
    if image.shape[:2] == (spec.height, spec.width):
        return image
    canvas = np.full((spec.height, spec.width, channels), spec.pad_value, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def batch(images: list[bytes], spec: ImageInput) -> Pixels:
    """Decode and resize encoded images: uint8 (n, height, width, channels)."""
    out = np.empty((len(images), spec.height, spec.width, spec.channels), np.uint8)
    for row, data in enumerate(images):
        out[row] = resize(decode(data, spec.channels), spec)
    return out
