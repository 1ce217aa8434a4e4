"""Near copies across splits: found where they are, not where samples are merely of one kind."""

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
    """A smooth scene with some hard things in it, as a frame `shift` pixels on."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
    whole = coarse.resize((2 * size, 2 * size), Image.Resampling.BICUBIC)
    return whole.crop((shift, 0, shift + size, size))


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
    found = similar.across_splits(written(tmp_path, rows), "classification")
    assert (found.count, found.compared, found.left_out) == (4, 34, 0)
    assert set(found.examples) == {"test 30 and 0", "test 31 and 1", "val 32 and 2", "val 33 and 3"}
    assert "4 of 34 held-out samples are near copies of training ones, as " in found.sentence()


def test_a_test_sample_that_is_nearly_one_of_validation_counts_too(tmp_path):
    rows = [("train", encoded(scene(5))), ("val", encoded(scene(0))), ("test", encoded(scene(0), "JPEG"))]
    assert similar.across_splits(written(tmp_path, rows), "classification").examples == ("test 2 and 1",)


def test_small_and_plain_images_are_left_out_and_counted(tmp_path):
    images = [sample.image for sample in digits.read()][:40]
    plain = [encoded(Image.new("RGB", (64, 64), (shade, 9, 9))) for shade in (10, 200)]
    rows = [("train" if number % 2 else "test", image) for number, image in enumerate(images + plain)]
    found = similar.across_splits(written(tmp_path, rows), "classification")
    assert (found.count, found.compared, found.left_out) == (0, 0, 21)
    assert found.sentence().endswith("; 21 could not be compared")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_every_kind_of_image_has_bits(mode):
    image = scene(0).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    own = similar.of_image(encoded(image.convert(mode) if mode != "I;16" else image))
    whole = similar.of_image(encoded(scene(0)))
    assert own is not None
    assert similar.nearest(own[None], whole[None])[0][0] <= similar.LIMITS["image"]


def test_a_text_with_a_word_changed_is_a_near_copy_and_one_of_the_same_kind_is_not(tmp_path):
    rng = np.random.default_rng(0)
    texts = [
        " ".join(rng.permutation(SENTENCE.format(*rng.permutation(WORDS)[:3]).split()).tolist()) for _ in range(40)
    ]
    near = [texts[0].upper(), texts[1].replace("committee", "council"), texts[2] + " "]
    rows = [("train", text) for text in texts[:20]] + [("test", text) for text in [*near, *texts[20:], "short"]]
    found = similar.across_splits(written(tmp_path, rows, task="text"), "text")
    assert (found.count, found.compared, found.left_out) == (3, 23, 1)
    assert set(found.examples) == {"test 20 and 0", "test 21 and 1", "test 22 and 2"}


def test_more_than_there_is_time_for_are_left_out_and_counted(tmp_path, monkeypatch):
    rows = [("train", encoded(scene(seed))) for seed in range(4)] + [
        ("test", encoded(scene(seed))) for seed in range(10)
    ]
    path = written(tmp_path, rows)
    whole = similar.across_splits(path, "classification")
    assert (whole.count, whole.compared, whole.left_out) == (4, 10, 0)
    monkeypatch.setattr(similar, "MOST_PAIRS", 12)
    part = similar.across_splits(path, "classification")
    assert (part.compared, part.left_out) == (3, 7)


def test_in_parts_the_nearest_are_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    held_out, others = (rng.integers(0, 2**63, (n, 4)).astype(np.uint64) for n in (50, 30))
    whole = similar.nearest(held_out, others)
    monkeypatch.setattr(similar, "CHUNK", 7)
    for one, other in zip(whole, similar.nearest(held_out, others), strict=True):
        assert (one == other).all()
    apart = np.bitwise_count(held_out[:, None] ^ others[None]).sum(2, dtype=np.int64)
    assert (whole[0] == apart.min(1)).all()
