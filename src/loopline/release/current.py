"""What is asked now: the newest labelled batch as a part of the test split, and its weight in the journal's traffic."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loopline.data import manifest, sources
from loopline.errors import LooplineError
from loopline.journal.reader import JournalReader
from loopline.release.promotion import Present

LATEST = 1000  # requests of the journal that tell the weights


def gather(model: str, path: Path, journal: Path) -> Present:
    """The parts of the manifest at `path` by whether they came with the model's newest batch, weighed by the journal's traffic.

    The new part's weight is the share of the latest requests that came since the first sample of that batch was served. Raises
    LooplineError where there is no batch, or where the journal has no sample of it.
    """
    newest = f"v{max(sources.batch_numbers(sources.BATCHES / model), default=0)}"
    rows = manifest.table(path, ["id", "source", "split"]).to_pydict()
    new, tested = np.array(rows["source"]) == newest, np.array(rows["split"]) == "test"
    if not new.any():
        raise LooplineError(f"{path} has no labelled batch: without one nothing is known of what is asked now")
    store = JournalReader(journal)
    try:
        ids = {id_ for id_, is_new in zip(rows["id"], new, strict=True) if is_new}
        served = [entry.time for entry in store.labelled(model) if entry.content in ids]
        if not served:
            raise LooplineError(
                f"{journal} has no sample of batch {newest} of {model}: name the journal that its labels came from"
            )
        share, requests = store.share_since(model, min(served), LATEST)
    finally:
        store.index.close()
    return Present(new=new[tested], batch=int(new.sum()), share=share, requests=requests)
