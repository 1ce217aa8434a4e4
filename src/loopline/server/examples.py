"""Example inputs for a model's pages: golden samples of its bundle, with different answers where possible."""

from __future__ import annotations

from typing import NamedTuple

from loopline.drift import golden
from loopline.server.model import Model, kind_of

MOST = 5  # examples of a model
MOST_TEXT = 1000  # characters; longer texts do not fit on a page
ANY_TEXT = "a text"  # example for a bundle without golden samples


class Example(NamedTuple):
    """place: number of the golden sample, from 0. text: None for an image. kind: an image's content type."""

    place: int
    text: str | None = None
    kind: str = ""


def path(model: Model, example: Example) -> str:
    """The path of an example image on the server."""
    return f"/examples/{model.name}/{example.place}"


def of(model: Model) -> list[Example]:
    """Choose a model's examples. The list is empty if its bundle has no golden samples."""
    file = model.bundle.folder / "golden.json"
    if not file.exists():
        return []
    first: dict[str, Example] = {}
    others: list[Example] = []
    for place, sample in enumerate(golden.read(file)):
        if isinstance(sample.given, bytes):
            example = Example(place, kind=f"image/{(kind_of(sample.given) or '').lower()}")
        else:
            example = Example(place, text=sample.given)
        if example.kind == "image/" or len(example.text or "") > MOST_TEXT:
            continue  # the predict route refuses it, or it is too long for a page
        answer = sample.answer
        labels = [answer["label"]] if "label" in answer else sorted({box["label"] for box in answer["boxes"]})
        if first.setdefault(" ".join(labels), example) is not example:
            others.append(example)
    return sorted([*first.values(), *others][:MOST])


def content(model: Model, example: Example) -> bytes:
    """Read an example image from the bundle's folder on each request, so that it takes no memory in between."""
    image = golden.read(model.bundle.folder / "golden.json")[example.place].given
    assert isinstance(image, bytes), "an image"
    return image
