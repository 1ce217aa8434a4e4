"""The specification of a model's inputs and outputs in its bundle. The server reads it too."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

MODEL_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # a label of a host name


def model_name(name: str) -> str:
    """Return `name` if it is valid in addresses, queries and paths. Raises ValueError otherwise."""
    if MODEL_NAME.fullmatch(name):
        return name
    raise ValueError(f"{name!r} cannot name a model: use 1 to 63 of a-z, 0-9 and '-', without '-' at either end")


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """How an encoded image becomes the tensor `image`: uint8, shape (n, height, width, channels), RGB or grey.

    `fit` is `stretch` (resize both sides) or `letterbox` (keep the aspect, pad with `pad_value` right and below).
    """

    height: int
    width: int
    channels: Literal[1, 3]
    fit: Literal["stretch", "letterbox"] = "stretch"
    pad_value: int = 114


@dataclass(frozen=True, kw_only=True)
class TextInput:
    """How a text becomes the tensor `ids`: int64, shape (n, length), padded with `pad_id` to the longest of the batch.

    `unknown_id` stands for tokens that the tokenizer does not know.
    """

    max_tokens: int
    pad_id: int = 0
    unknown_id: int = 1


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything that preprocessing and post-processing need to know; a part of `bundle.json`."""

    task: str
    labels: tuple[str, ...]
    image: ImageInput | None = None
    text: TextInput | None = None
    temperature: float = 1.0
    score_threshold: float = 0.25  # detection: answers leave out boxes below it
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without the fields that are None."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelSpec:
        """Return the specification that `to_dict` made into `fields`. Raises TypeError on an unknown field."""
        image, text = fields.get("image"), fields.get("text")
        return cls(
            **fields
            | {"labels": tuple(fields["labels"])}
            | {"image": ImageInput(**image) if image else None, "text": TextInput(**text) if text else None}
        )


class Truth(Protocol):
    """The part of a split that a scorer needs: see `data.manifest.Split`."""

    @property
    def targets(self) -> Any:
        """Class indices (n,), for each image an array (m, 5) of boxes, or what else the task's `targets` returns."""

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Width and height of the originals (n, 2)."""
