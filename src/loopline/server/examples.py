"""Inputs to try a model with, for its pages: golden samples of its bundle, each with another answer where there are such."""

from __future__ import annotations

from typing import NamedTuple

from loopline.drift import golden
from loopline.server.model import Model, kind_of

MOST = 5
MOST_TEXT = 1000  # characters of a text; a longer one is no example for a page
ANY_TEXT = "a text"  # of a model whose bundle has no golden samples


class Example(NamedTuple):
    """place: of the golden sample. text: None for an image, whose kind is a content type."""

    place: int
    text: str | None = None
    kind: str = ""


def path(model: Model, example: Example) -> str:
    """Where the server has an image."""
    return f"/examples/{model.name}/{example.place}"


def of(model: Model) -> list[Example]:
    """Choose the examples of a model; none where its bundle has no golden samples."""
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
            continue  # the route for people does not take it, or nobody would read it
        answer = sample.answer
        found = [answer["label"]] if "label" in answer else sorted({box["label"] for box in answer["boxes"]})
        if first.setdefault(" ".join(found), example) is not example:
            others.append(example)
    return sorted([*first.values(), *others][:MOST])


def content(model: Model, example: Example) -> bytes:
    """Read an image from the bundle's folder: what nobody looks at takes no memory."""
    given = golden.read(model.bundle.folder / "golden.json")[example.place].given
    assert isinstance(given, bytes), "an image"
    return given
