import io

import numpy as np
import pytest
from PIL import Image

from loopline.simulate import shifts


def picture(mode, **options):
    rng = np.random.default_rng(0)
    shape = (40, 60) if mode == "L" else (40, 60, 3)
    smooth = rng.normal(128, 20, shape).cumsum(0).cumsum(1)
    out = io.BytesIO()
    Image.fromarray((smooth % 256).astype(np.uint8)).save(out, **options)
    return out.getvalue()


def opened(data):
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{"format": "JPEG", "quality": 60}, {"format": "PNG"}, {"format": "BMP"}])
@pytest.mark.parametrize("name", [None, *shifts.names(texts=False)])
def test_a_shifted_image_keeps_size_and_channels_and_a_jpeg_its_format(mode, options, name):
    data = picture(mode, **options)
    shifted = opened(shifts.shifted_image(data, name, 2, np.random.default_rng(0)))
    assert (shifted.size, shifted.mode) == ((60, 40), mode)
    assert shifted.format == ("JPEG" if options["format"] == "JPEG" else "PNG")


def test_a_jpeg_that_is_encoded_again_keeps_its_quality():
    data = picture("RGB", format="JPEG", quality=35, subsampling=0)
    again = shifts.shifted_image(data, None, 0, np.random.default_rng(0))
    assert opened(again).quantization == opened(data).quantization
    assert abs(len(again) - len(data)) < 0.1 * len(data)


@pytest.mark.parametrize("name", shifts.names(texts=True))
def test_a_shifted_text_differs(name):
    text = "Ärger, und noch mehr Ärger: fünf süße Äpfel"
    shifted = shifts.shifted(text, name, 3, np.random.default_rng(0))
    assert shifted
    assert shifted != text
