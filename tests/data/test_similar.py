"""Near copies across splits are found, and samples that are merely alike are not."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from loopline.data import manifest, similar
from loopline.data.embedded import digits
from loopline.data.manifest import Sample

SENTENCE = "The committee met on {} to look at the budget of the {} and put off its decision until the {} of next year."
WORDS = ["harbour", "library", "railway", "museum", "theatre", "hospital", "orchard", "stadium", "airport", "bridge"]


def scene(seed, *, shift=0, size=160):
    """A smooth random scene, moved by `shift` pixels like the next frame of a video."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
    wide = coarse.resize((2 * size, 2 * size), Image.Resampling.BICUBIC)
    return wide.crop((shift, 0, shift + size, size))


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def written(folder, rows, *, task="classification"):
    """rows: (split, image or text)."""
    samples = []
    for number, (split, content) in enumerate(rows):
        raw = content if isinstance(content, bytes) else content.encode()
        kind = {"image": content, "width": 1, "height": 1} if isinstance(content, bytes) else {"text": content}
        digest = hashlib.sha256(raw + bytes([number % 256])).hexdigest()
        samples.append(Sample(id=digest, source="s", path=f"{number}", split=split, label="a", **kind))
    manifest.write(folder / "manifest.parquet", samples, task=task, labels=("a",))
    return folder / "manifest.parquet"


def test_a_photo_saved_again_smaller_or_a_frame_on_is_a_near_copy_and_another_is_not(tmp_path):
    rows = [("train", encoded(scene(seed))) for seed in range(30)]
    rows += [
        ("test", encoded(scene(0), "JPEG", quality=60)),
        ("test", encoded(scene(1).resize((100, 100)))),
        ("val", encoded(scene(2, shift=3))),
        ("val", encoded(scene(3), "WEBP", quality=50)),
        *(("test", encoded(scene(seed))) for seed in range(100, 130)),
    ]
    copies = similar.across_splits(written(tmp_path, rows), "image")
    assert (copies.count, copies.compared, copies.left_out) == (4, 34, 0)
    assert set(copies.examples) == {"test 30 and 0", "test 31 and 1", "val 32 and 2", "val 33 and 3"}
    assert "4 of 34 held-out samples are near copies of training ones, such as " in copies.sentence()


def test_a_test_sample_that_is_nearly_one_of_validation_counts_too(tmp_path):
    rows = [("train", encoded(scene(5))), ("val", encoded(scene(0))), ("test", encoded(scene(0), "JPEG"))]
    assert similar.across_splits(written(tmp_path, rows), "image").examples == ("test 2 and 1",)


def test_small_and_plain_images_are_left_out_and_counted(tmp_path):
    images = [sample.image for sample in digits.read()][:40]
    plain = [encoded(Image.new("RGB", (64, 64), (shade, 9, 9))) for shade in (10, 200)]
    rows = [("train" if number % 2 else "test", image) for number, image in enumerate(images + plain)]
    copies = similar.across_splits(written(tmp_path, rows), "image")
    assert (copies.count, copies.compared, copies.left_out) == (0, 0, 21)
    assert copies.sentence().endswith("; 21 could not be compared")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_every_kind_of_image_has_bits(mode):
    image = scene(0).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    own = similar.of_image(encoded(image.convert(mode) if mode != "I;16" else image))
    full = similar.of_image(encoded(scene(0)))
    assert own is not None
    assert similar.nearest(own[None], full[None])[0][0] <= similar.LIMITS["image"]


def test_a_text_with_a_word_changed_is_a_near_copy_and_one_of_the_same_kind_is_not(tmp_path):
    rng = np.random.default_rng(0)
    texts = [
        " ".join(rng.permutation(SENTENCE.format(*rng.permutation(WORDS)[:3]).split()).tolist()) for _ in range(40)
    ]
    near = [texts[0].upper(), texts[1].replace("committee", "council"), texts[2] + " "]
    rows = [("train", text) for text in texts[:20]] + [("test", text) for text in [*near, *texts[20:], "short"]]
    copies = similar.across_splits(written(tmp_path, rows, task="text"), "text")
    assert (copies.count, copies.compared, copies.left_out) == (3, 23, 1)
    assert set(copies.examples) == {"test 20 and 0", "test 21 and 1", "test 22 and 2"}


def test_samples_beyond_the_most_pairs_are_left_out_and_counted(tmp_path, monkeypatch):
    rows = [("train", encoded(scene(seed))) for seed in range(4)] + [
        ("test", encoded(scene(seed))) for seed in range(10)
    ]
    path = written(tmp_path, rows)
    everything = similar.across_splits(path, "image")
    assert (everything.count, everything.compared, everything.left_out) == (4, 10, 0)
    monkeypatch.setattr(similar, "MOST_PAIRS", 12)
    part = similar.across_splits(path, "image")
    assert (part.compared, part.left_out) == (3, 7)


def test_chunks_do_not_change_the_nearest(monkeypatch):
    rng = np.random.default_rng(0)
    held_out, others = (rng.integers(0, 2**63, (n, 4)).astype(np.uint64) for n in (50, 30))
    expected = similar.nearest(held_out, others)
    monkeypatch.setattr(similar, "CHUNK", 7)
    for array, chunked in zip(expected, similar.nearest(held_out, others), strict=True):
        assert (array == chunked).all()
    apart = np.bitwise_count(held_out[:, None] ^ others[None]).sum(2, dtype=np.int64)
    assert (expected[0] == apart.min(1)).all()
