"""Decoding and resizing give the right pixels, whatever a camera or an editor wrote."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loopline.tasks import image
from loopline.tasks.spec import ImageInput


def encode(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def quarters() -> Image.Image:
    """Return quarters of red, green, blue and white, 20 x 30, in which a turn or a swap shows."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10, :15, 0] = pixels[:10, 15:, 1] = pixels[10:, :15, 2] = 255
    pixels[10:, 15:] = 255
    return Image.fromarray(pixels)


def test_rgb_is_unchanged():
    assert np.array_equal(image.decode(encode(quarters()), 3), np.asarray(quarters()))


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    turned = image.decode(encode(quarters(), exif=exif), 3)
    assert np.array_equal(turned, np.asarray(quarters().transpose(Image.Transpose.ROTATE_270)))


def test_grey_becomes_three_equal_channels():
    pixels = image.decode(encode(quarters().convert("L")), 3)
    assert pixels.shape == (20, 30, 3)
    assert np.array_equal(pixels[:, :, 0], pixels[:, :, 2])


def test_cmyk_becomes_rgb():
    pixels = image.decode(encode(quarters().convert("CMYK"), "JPEG", quality=95), 3)
    assert np.abs(pixels[4, 4].astype(int) - [255, 0, 0]).max() < 30


def test_sixteen_bits_become_eight():
    deep = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    pixels = image.decode(encode(Image.fromarray(deep)), 1)[:, :, 0]
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert (np.diff(pixels.ravel().astype(int)) >= 0).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode):
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    options = {"transparency": 0} if mode == "P" else {}
    picture = Image.new("P", (4, 4), 0) if mode == "P" else clear.convert(mode)
    assert (image.decode(encode(picture, **options), 3) == 255).all()


def test_a_transparent_grey_of_sixteen_bits_is_laid_on_white():
    deep = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    data = encode(Image.fromarray(deep), transparency=int(deep[0, 1]))
    pixels = image.decode(data, 1)[:, :, 0]
    assert np.array_equal(pixels, np.where(deep == deep[0, 1], 255, deep // 257))


def test_a_floating_point_image_is_refused_with_the_reason():
    with pytest.raises(image.UnreadableImage, match="8 or 16 bits"):
        image.decode(encode(Image.new("F", (4, 4), 0.5), "TIFF"), 3)


def test_too_many_pixels_are_refused_before_they_are_decoded():
    with pytest.raises(image.UnreadableImage, match="at most 100 are"):
        image.decode(encode(quarters()), 3, max_pixels=100)


def test_more_pixels_than_pillow_opens_raise_too_large_and_not_a_broken_image():
    data = bytearray(encode(quarters(), "BMP"))
    data[18:26] = struct.pack("<ii", 16320, 12240)
    with pytest.raises(image.TooLarge, match="too many pixels, at most 50000000 are"):
        image.decode(bytes(data), 3)


def test_a_truncated_image_is_refused():
    with pytest.raises(image.UnreadableImage, match="broken"):
        image.decode(encode(Image.effect_noise((64, 64), 80))[:1000], 1)


@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(data):
    with pytest.raises(image.UnreadableImage):
        image.decode(data, 3)


@given(st.integers(0, 255), st.integers(20, 2000))
def test_a_damaged_image_is_read_or_refused(value, position):
    data = bytearray(encode(Image.effect_noise((40, 40), 80), "JPEG"))
    data[position % len(data)] = value
    try:
        pixels = image.decode(bytes(data), 3)
    except image.UnreadableImage:
        return
    assert pixels.dtype == np.uint8


@given(st.integers(1, 90), st.integers(1, 90))
def test_a_letterbox_keeps_the_aspect_and_pads_right_and_below(width, height):
    spec = ImageInput(height=32, width=48, channels=3, fit="letterbox", pad_value=7)
    out = image.resize(np.full((height, width, 3), 200, np.uint8), spec)
    across, down = image.scale(width, height, spec)
    assert out.shape == (32, 48, 3)
    assert across == down
    filled = (out[:, :, 0] == 200).sum()
    assert abs(filled - max(1, round(width * across)) * max(1, round(height * down))) <= 1
    assert out[0, 0, 0] == 200


def test_stretching_fills_the_shape():
    spec = ImageInput(height=16, width=8, channels=1)
    assert image.batch([encode(quarters())], spec).shape == (1, 16, 8, 1)
    assert image.batch([], spec).shape == (0, 16, 8, 1)
