"""The pure part of ingest: turn raw samples into clean samples with splits, and count what is set aside by reason.

A sample is set aside if it cannot be read, is empty or too long, has no usable label, or is a copy. If copies disagree on the
label, all of them are set aside; their boxes agree if they overlap (agreement.py).

A box that sticks out of its image is clipped. A box is set aside if its annotation is unusable, if it has no class, a corner that
is not a number or no area, if it lies outside its image, or if it is clipped to the same corners as an earlier box of its class. A
sample whose boxes are all set aside is set aside as well. A sample that was annotated with no box is kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from loopline import tasks
from loopline.data.agreement import boxes_agree
from loopline.data.formats.common import MAX_BYTES, nfc
from loopline.data.manifest import SPLITS, Box, Sample
from loopline.data.raw import RawBox, RawSample
from loopline.settings import SplitSettings
from loopline.tables import encoding
from loopline.tasks.base import Content, Task
from loopline.tasks.image import UnreadableImage, decode

EXAMPLES = 5
MAX_CHARACTERS = 1_000_000  # of a text; more is probably a whole file
ROUNDING = (
    0.5  # pixels; a box that sticks out by less is clipped but not counted, since fractions of an image are rounded
)
LEAST_SIDE = 0.001  # pixels; less may be 0 in the manifest's 32-bit floats


class SetAside(Exception):
    """The sample is set aside. args: the reason, which is counted, and perhaps a detail of this sample."""


@dataclass(frozen=True)
class Aside:
    """What was set aside: the count and the first EXAMPLES paths of each reason."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, path: str, detail: str = "") -> None:
        """Count one, and keep its path while there are fewer than EXAMPLES."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(_encodable(f"{path} ({detail})" if detail else path))

    @property
    def total(self) -> int:
        """The number set aside for all reasons."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Cleaned:
    """The clean samples and the counts: seen == len(samples) + aside.total.

    boxes_seen: the boxes in `samples`, those in `boxes_aside`, and all other boxes of samples set aside. boxes_aside: boxes that
    were set aside one by one. boxes_clipped: usable boxes that stuck out by over ROUNDING. Both also count boxes of samples that
    were set aside after their boxes had been checked. left_out: files that are not samples, which `seen` does not count.
    """

    samples: list[Sample]
    seen: int
    aside: Aside
    boxes_seen: int
    boxes_clipped: int
    boxes_aside: Aside
    left_out: Aside = field(default_factory=Aside)
    grouped: Grouped | None = None


@dataclass(frozen=True)
class Grouped:
    """The number of groups, the number of samples without a group, and the groups that published splits divide."""

    groups: int
    without: int
    torn: list[str]


@dataclass
class _Copies:
    """All copies of one content. published: the published splits of the copies in the first copy's source."""

    first: Sample
    group: str | None
    published: set[str | None]
    paths: list[str] = field(default_factory=list)
    contradicting: list[Sample] = field(default_factory=list)  # copies with another label than the first


def assign(key: str, published: str | None, of_source: Iterable[str], split: SplitSettings) -> str:
    """The split of a sample. It depends on its content or group, the seed and what its source publishes: later sources never move it.

    key: the content's id, or the group's name. of_source: the splits that the source publishes. A published val or test is
    kept. Otherwise the hash of "seed:key" is a number in [0, 1): below `split.test` is test, from 1 - `split.val` is val,
    unless the source publishes that split; the rest is train.
    """
    if published in ("val", "test"):
        return published
    number = int.from_bytes(hashlib.sha256(f"{split.seed}:{key}".encode()).digest()[:8]) / 2**64
    if "test" not in of_source and number < split.test:
        return "test"
    return "val" if "val" not in of_source and number >= 1 - split.val else "train"


def clean(sources: Iterable[tuple[str, Iterable[RawSample]]], *, task: str, split: SplitSettings) -> Cleaned:
    """Check each sample, drop copies, assign splits. Decodes one image at a time and keeps the encoded bytes.

    sources: (name, samples) in the order they were added: the dataset, then its batches. A copy of a sample in an earlier
    source adds nothing; with another label it sets all copies aside. Among copies in one source, test wins over val, and val over
    train.
    """
    boxes = _Boxes()
    aside, left_out = Aside(), Aside()
    contents: dict[str, _Copies] = {}
    published: dict[str, set[str]] = {}
    seen, kind = 0, tasks.find(task)
    for source, samples in sources:
        of_source = published.setdefault(source, set())
        for raw in samples:
            if raw.unused:
                left_out.add(raw.problem or "", raw.path)
                continue
            seen += 1
            boxes.seen += len(raw.boxes or ())
            try:
                sample = _check(raw, source, kind, boxes)
            except SetAside as problem:
                aside.add(problem.args[0], raw.path, *problem.args[1:])
            else:
                if raw.split:  # counted only for a usable sample: a competition's test split may have no labels
                    of_source.add(raw.split)
                group = split.group.of(raw.path, raw.group) if split.group else None
                _join(contents, sample, group, raw.split)
    kept = list(_settle(contents, published, split, aside))
    grouped = _grouped(kept, contents) if split.group else None
    return Cleaned(kept, seen, aside, boxes.seen, boxes.clipped, boxes.aside, left_out, grouped)


def _join(contents: dict[str, _Copies], sample: Sample, group: str | None, published: str | None) -> None:
    """Add the sample to the copies of its content."""
    copies = contents.setdefault(sample.id, _Copies(sample, group, {published}))
    if sample.source == copies.first.source:
        copies.published.add(published)
    if not same_truth(sample, copies.first):
        copies.contradicting.append(sample)
    copies.paths.append(sample.path)


def same_truth(first: Sample, second: Sample) -> bool:
    """Whether two samples have the same class, or boxes that agree."""
    if first.boxes is None or second.boxes is None:
        return first.label == second.label
    return boxes_agree(first.boxes, second.boxes)


def _settle(
    contents: dict[str, _Copies], published: dict[str, set[str]], split: SplitSettings, aside: Aside
) -> Iterator[Sample]:
    """Yield one sample of each content, with its split, unless its copies disagree on the label."""
    sources: dict[str, str] = {}  # group -> its first source, so that a later source cannot move it
    for content in contents.values():
        first, *copies = content.paths
        if content.contradicting:
            names = dict.fromkeys(sample.label or "" for sample in (content.first, *content.contradicting))
            labels = "boxes differ" if content.first.boxes is not None else f"labels {', '.join(names)}"
            for path in content.paths:
                aside.add("copies with different labels", path, f"{labels}; first copy {first}")
            continue
        for path in copies:
            aside.add("copy of another sample", path, f"of {first}")
        key, source = content.first.id, content.first.source
        if content.group is not None:
            key, source = f"group {content.group}", sources.setdefault(content.group, source)
        splits = [assign(key, name, published[source], split) for name in content.published]
        yield replace(content.first, split=max(splits, key=SPLITS.index))


def _grouped(kept: list[Sample], contents: dict[str, _Copies]) -> Grouped:
    splits: dict[str, set[str]] = {}
    for sample in kept:
        if (group := contents[sample.id].group) is not None:
            splits.setdefault(group, set()).add(sample.split)
    without = sum(contents[sample.id].group is None for sample in kept)
    return Grouped(len(splits), without, sorted(group for group, names in splits.items() if len(names) > 1))


def _check(raw: RawSample, source: str, task: Task, boxes: _Boxes) -> Sample:
    """The clean sample, with an empty split. Raises SetAside."""
    label = _name(raw.label or "")
    if task.truth == "label" and not raw.problem:
        if not label:
            raise SetAside("no label")
        if problem := task.label_problem(label):
            raise SetAside(problem, label)
    sample = without_truth(raw, source, task.content)
    if task.truth == "label":
        return replace(sample, label=label)
    if raw.boxes is None:
        raise SetAside("image without annotation")
    size = sample.width or 0, sample.height or 0
    if raw.size not in (None, size):
        raise SetAside("boxes drawn for another size", f"for {raw.size}, the upright image has {size}")
    usable = boxes.clean(raw.boxes, *size, sample.path)
    if raw.boxes and not usable:
        raise SetAside("no usable box left", boxes.last_reason)
    return replace(sample, boxes=usable)


def without_truth(raw: RawSample, source: str, content: Content) -> Sample:
    """The clean sample without label, boxes and split. Raises SetAside if its image or text cannot be used."""
    if raw.problem:
        raise SetAside(raw.problem, raw.detail)
    path = _encodable(raw.path)
    if content == "text":
        text, digest = _text(raw.text or "")
        return Sample(id=digest, source=source, path=path, split="", text=text)
    data = raw.image or b""
    width, height = _size(data)
    digest = hashlib.sha256(data).hexdigest()
    return Sample(id=digest, source=source, path=path, split="", image=data, width=width, height=height)


def _encodable(name: str) -> str:
    """The name with escapes such as `\\udce9` for invalid characters: file names hold any bytes, the manifest only UTF-8.

    Different names stay different.
    """
    return name if name.isascii() else name.encode(errors="backslashreplace").decode()


def _name(label: str) -> str:
    """The class name in composed characters (NFC), without surrounding white space."""
    return _encodable(nfc(label).strip())


def _text(text: str) -> tuple[str, str]:
    """The text without surrounding white space, and its sha256. Raises SetAside."""
    text = text.strip()
    if not text:
        raise SetAside("empty text")
    if len(text) > MAX_CHARACTERS:
        raise SetAside("text too long", f"{len(text):,} characters, at most {MAX_CHARACTERS:,} are accepted")
    if unusable := encoding.problem(text):
        raise SetAside(f"text {unusable}")
    return text, hashlib.sha256(text.encode()).hexdigest()


def _size(image: bytes) -> tuple[int, int]:
    """Width and height of the upright image in pixels. Raises SetAside."""
    if not image:
        raise SetAside("empty file")
    if len(image) > MAX_BYTES:
        raise SetAside(f"file over {MAX_BYTES // 2**20} MB")
    try:
        height, width, _ = decode(image, 3).shape
    except UnreadableImage as error:
        raise SetAside("unreadable image", str(error)) from error
    return width, height


@dataclass
class _Boxes:
    """Clean boxes and count them."""

    seen: int = 0
    clipped: int = 0
    aside: Aside = field(default_factory=Aside)
    last_reason: str = ""  # why the last box was set aside

    def clean(self, raw: Iterable[RawBox], width: int, height: int, path: str) -> tuple[Box, ...]:
        """The usable boxes of an image, clipped to the image. Counts those that are clipped, and those that are set aside."""
        kept: dict[Box, None] = {}
        for box in raw:
            corners = (box.x1, box.y1, box.x2, box.y2)
            x1, y1, x2, y2 = max(box.x1, 0.0), max(box.y1, 0.0), min(box.x2, width), min(box.y2, height)
            clipped = Box(_name(box.label), float(x1), float(y1), float(x2), float(y2))
            reason = box.problem
            if reason is None and not all(map(math.isfinite, corners)):
                reason = "box with a corner that is not a number"
            elif reason is None and not clipped.label:
                reason = "box without a class"
            elif reason is None and min(box.x2 - box.x1, box.y2 - box.y1) < LEAST_SIDE:
                reason = "box without area"
            elif reason is None and min(x2 - x1, y2 - y1) < LEAST_SIDE:
                reason = "box outside its image"
            elif reason is None and clipped in kept:
                reason = "copy of another box"
            if reason is not None:
                shown = f"{box.label} ({', '.join(f'{corner:g}' for corner in corners)})".strip()
                self.aside.add(reason, path, box.detail or shown)
                self.last_reason = reason
                continue
            overhang = max(abs(a - b) for a, b in zip(corners, (x1, y1, x2, y2), strict=True))
            self.clipped += overhang > ROUNDING
            kept[clipped] = None
        return tuple(kept)
