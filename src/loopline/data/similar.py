"""Near copies across splits: frames of one video, a photo saved again, a text with a word changed.

Each sample becomes a hash of 256 bits, of which a small change flips only a few. For an image, a bit says whether it
gets brighter from left to right (dHash, 16 x 16 pixels); for a text, it is the sign of a sum over hashed shingles (SimHash).
Brute force compares all pairs, so it misses none, and its time depends only on the number of samples.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loopline.data.manifest import SPLITS
from loopline.tasks.base import Content
from loopline.tasks.image import decode

# Bits that may differ. Measured: copied images differ in 0 to 25, others in 43 or more; copied texts in 0 to 40, others 46.
LIMITS = {"image": 32, "text": 40}
LEAST_SIDE = 32  # pixels: two digits "1" of 28 x 28 pixels look like copies
LEAST_DETAIL = 64  # of 256 differences between neighbours must not be 0, since all plain images are alike
LEAST_SHINGLES = 32  # shorter texts, such as names of places, are alike across languages
EXAMPLES = 5
SIDE, WORDS = 16, 4  # pixels; 64-bit words of a hash
SHINGLE, MOST_BYTES = 5, 20_000  # bytes of a shingle; bytes of a text that are hashed
CHUNK = 1 << 22  # pairs compared at a time: 80 MB
MOST_PAIRS = 2_000_000_000  # half a minute; the held-out samples beyond it are left out
MIXERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64)

Bits = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class NearCopies:
    """The number of validation and test samples that nearly equal one of an earlier split, and the nearest pairs.

    compared: the number compared. left_out: the number not compared, because too small, too plain or too many.
    """

    count: int
    compared: int
    left_out: int
    examples: tuple[str, ...]

    def sentence(self) -> str:
        """The counts and an example, as a sentence."""
        example = f", such as {self.examples[0]}" if self.examples else ""
        left_out = f"; {self.left_out:,} could not be compared" if self.left_out else ""
        return (
            f"{self.count:,} of {self.compared:,} held-out samples are near copies of training ones{example}{left_out}"
        )


def across_splits(manifest: Path, content: Content) -> NearCopies:
    """Compare each validation sample with training samples, and each test sample with both."""
    paths: dict[str, list[str]] = {split: [] for split in SPLITS}
    bits: dict[str, list[Bits]] = {split: [] for split in SPLITS}
    left_out = 0
    for split, path, sample in _samples(manifest, content):
        hashed = of_text(sample) if isinstance(sample, str) else of_image(sample)
        if hashed is not None:
            paths[split].append(path)
            bits[split].append(hashed)
        elif split != "train":
            left_out += 1
    compared, pairs = 0, []
    for number, split in enumerate(SPLITS[1:], start=1):
        earlier = [path for name in SPLITS[:number] for path in paths[name]]
        if not earlier or not bits[split]:
            continue
        most = max(1, MOST_PAIRS // len(earlier))
        held_out = bits[split][:most]
        left_out += len(bits[split]) - len(held_out)
        compared += len(held_out)
        earlier_bits = [hashed for name in SPLITS[:number] for hashed in bits[name]]
        distances, rows = nearest(np.stack(held_out), np.stack(earlier_bits))
        pairs += [
            (int(distance), f"{split} {path}", earlier[row])
            for distance, path, row in zip(distances, paths[split], rows, strict=False)
            if distance <= LIMITS[content]
        ]
    examples = tuple(f"{path} and {other}" for _, path, other in sorted(pairs)[:EXAMPLES])
    return NearCopies(count=len(pairs), compared=compared, left_out=left_out, examples=examples)


def _samples(manifest: Path, column: str) -> Iterator[tuple[str, str, bytes | str]]:
    """Yield split, path and content of each sample; 256 are in memory at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(manifest) as file:
        for batch in file.iter_batches(batch_size=256, columns=["split", "path", column]):
            yield from zip(*(batch.column(name).to_pylist() for name in ("split", "path", column)), strict=True)


def of_image(image: bytes) -> Bits | None:
    """The hash of an encoded image, shape (4,), None if the image is too small or too plain."""
    from PIL import Image

    with Image.open(io.BytesIO(image)) as opened:
        if min(opened.size) < LEAST_SIDE:
            return None
        opened.draft("L", (8 * SIDE, 8 * SIDE))  # lets a JPEG decode at a reduced size, which is fast
        grey = opened.convert("L") if opened.format == "JPEG" else Image.fromarray(decode(image, 1)[..., 0])
    pixels = np.asarray(grey.resize((SIDE + 1, SIDE), Image.Resampling.BOX), np.int16)
    change = np.diff(pixels, axis=1)
    if np.count_nonzero(change) < LEAST_DETAIL:
        return None
    return np.packbits(change > 0).view(np.uint64)


def shingles(text: str) -> NDArray[np.uint64]:
    """The distinct runs of five bytes of a text as sorted numbers; case and white space are ignored."""
    raw = np.frombuffer(" ".join(text.lower().split()).encode()[:MOST_BYTES].ljust(SHINGLE), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(raw, SHINGLE).astype(np.uint64)
    return np.unique(windows @ (np.uint64(256) ** np.arange(SHINGLE, dtype=np.uint64)))


def of_text(text: str) -> Bits | None:
    """The hash of a text, shape (4,), None if the text is too short."""
    runs = shingles(text)
    if len(runs) < LEAST_SHINGLES:
        return None
    mixed = runs[:, None] * MIXERS
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    bits = np.unpackbits(mixed.view(np.uint8), axis=1)
    return np.packbits(bits.sum(0) * 2 > len(bits)).view(np.uint64)


def nearest(held_out: Bits, others: Bits) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each of the n rows of `held_out`, the distance in bits to the nearest row of `others`, and that row's index."""
    distances, rows = np.zeros(len(held_out), np.int64), np.zeros(len(held_out), np.int64)
    step = max(1, CHUNK // len(others))
    for start in range(0, len(held_out), step):
        part = held_out[start : start + step]
        apart = np.zeros((len(part), len(others)), np.uint16)
        for word in range(WORDS):
            apart += np.bitwise_count(part[:, None, word] ^ others[None, :, word])
        rows[start : start + step] = apart.argmin(1)
        distances[start : start + step] = apart.min(1)
    return distances, rows
