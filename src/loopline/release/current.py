"""The present traffic: the newest labelled batch in the test split, and its share of the journal's latest requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loopline.data import manifest, sources
from loopline.errors import LooplineError
from loopline.journal.reader import JournalReader
from loopline.release.promotion import Present

LATEST = 1000  # requests of the journal that give the share


def gather(model: str, path: Path, journal: Path) -> Present:
    """Return which test samples of the manifest at `path` came with the newest batch, and the share of its traffic.

    The share is that of the latest requests which came after the first sample of the batch was served. Raises LooplineError if
    there is no batch, or if the journal has no sample of it.
    """
    newest = f"v{max(sources.batch_numbers(sources.BATCHES / model), default=0)}"
    rows = manifest.table(path, ["id", "source", "split"]).to_pydict()
    new, tested = np.array(rows["source"]) == newest, np.array(rows["split"]) == "test"
    if not new.any():
        raise LooplineError(f"{path} has no labelled batch of present traffic: add one with `loopline data add`")
    store = JournalReader(journal)
    try:
        ids = {id_ for id_, is_new in zip(rows["id"], new, strict=True) if is_new}
        served = [entry.time for entry in store.labelled(model) if entry.content in ids]
        if not served:
            raise LooplineError(
                f"{journal} has no sample of batch {newest} of {model}: pass the journal that its labels came from"
            )
        share, requests = store.share_since(model, min(served), LATEST)
    finally:
        store.index.close()
    return Present(new=new[tested], batch=int(new.sum()), share=share, requests=requests)
