"""What the training of a text model starts from, whatever its architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loopline.tasks.spec import TextInput

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from loopline.tasks.text.network import TextNetwork


@dataclass(frozen=True)
class Start:
    """An untrained model. config: what config.json must say so that the architecture's `build` makes the same network again."""

    tokenizer: Tokenizer
    network: TextNetwork
    text: TextInput
    config: dict[str, Any]
