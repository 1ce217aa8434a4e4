"""The embedded digits and languages: their number, content and order."""

from __future__ import annotations

import hashlib
import io
import unicodedata
from collections import Counter

import numpy as np
from PIL import Image

from loopline.data import catalog
from loopline.data.embedded import digits, languages


def test_digits_are_greyscale_images_of_28_pixels_in_ten_balanced_classes() -> None:
    samples = list(digits.read())
    assert len(samples) == catalog.load()["digits"].samples
    counts = Counter(sample.label for sample in samples)
    assert sorted(counts) == [str(digit) for digit in range(10)]
    assert min(counts.values()) > 170
    image = Image.open(io.BytesIO(samples[0].image or b""))
    assert (image.format, image.mode, image.size) == ("PNG", "L", (28, 28))
    assert {sample.split for sample in samples} == {None}
    assert len({sample.path for sample in samples}) == len({sample.image for sample in samples}) == len(samples)


def test_a_digit_keeps_its_ink() -> None:
    inks, _ = digits.load()
    image = np.asarray(Image.open(io.BytesIO(next(digits.read()).image or b"")))
    assert abs(image.mean() - inks[0].mean() * 255 / 16) < 3


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    inks, labels = digits.load()
    expected = load_digits()
    np.testing.assert_array_equal(inks, expected.images)
    np.testing.assert_array_equal(labels, expected.target)


def test_languages_has_25_languages_and_no_name_in_two_of_them() -> None:
    samples = list(languages.read())
    assert len(samples) == catalog.load()["languages"].samples
    counts = Counter(sample.label for sample in samples)
    assert len(counts) == 25
    assert min(counts.values()) > 400
    folded = [(sample.text or "").casefold() for sample in samples]
    assert len(set(folded)) == len(folded)
    assert all(sum(map(str.isalpha, text)) >= 3 and text == " ".join(text.split()) for text in folded)


def test_languages_are_the_same_every_time() -> None:
    digests = {
        hashlib.sha256("\n".join(f"{s.label}\t{s.text}" for s in languages.read()).encode()).hexdigest()
        for _ in range(2)
    }
    assert len(digests) == 1


def test_languages_are_written_in_latin_letters() -> None:
    letters = {letter for sample in languages.read() for letter in sample.text or "" if letter.isalpha()}
    assert {unicodedata.name(letter).split()[0] for letter in letters} <= {"LATIN", "MODIFIER", "FEMININE", "MASCULINE"}
