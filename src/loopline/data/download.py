"""Fetches a dataset of the catalogue into `.loopline/datasets/<name>/`: the mirror first, then the network.

`loopline data fetch NAME`; ingest calls it too. Every byte is verified, whatever it came from: see `transfer`.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from loopline.data.catalog import DATASETS, Dataset, File, mirror
from loopline.data.transfer import TransferOptions, accept, download, has_content, partial_of
from loopline.errors import LooplineError
from loopline.lib import locks
from loopline.settings import repository

WORKERS = 8


def fetch(dataset: Dataset, *, root: Path | None = None, timeout: float = 30.0, backoff: float = 0.5) -> Path:
    """Make sure that every file of the dataset is in `root/<name>`, and return that folder.

    root: by default `.loopline/datasets` of the repository, which its working copies share.
    What is there with the right hash is left alone. Raises LooplineError if a file cannot be had or has another hash
    than the catalogue's; what arrived until then stays, for the next try. timeout, backoff: see `transfer.TransferOptions`.
    """
    folder = (root or repository() / DATASETS) / dataset.name
    with locks.held(folder / ".lock"):
        missing = [file for file in dataset.files if not has_content(folder / file.path, file)]
        if missing:
            _fetch_all(dataset, missing, folder, timeout=timeout, backoff=backoff)
    return folder


def _fetch_all(dataset: Dataset, files: list[File], folder: Path, *, timeout: float, backoff: float) -> None:
    from tqdm import tqdm

    source = mirror()
    homeless = [file.path for file in files if not _copy_of(file, dataset, source) and not dataset.address(file)]
    if homeless:
        raise LooplineError(
            f"{dataset.name}: no public address is known for {', '.join(homeless)}. Put the files into "
            f"<folder>/{dataset.name}/ and set LOOPLINE_MIRROR=<folder>; data/catalog.yaml has their sha256"
        )
    total = sum(file.bytes for file in files)
    bar = tqdm(total=total, unit="B", unit_scale=True, desc=dataset.name, disable=None)  # a terminal has it, a log not
    with bar, ThreadPoolExecutor(WORKERS) as pool:
        line = TransferOptions(progress=bar.update, timeout=timeout, backoff=backoff)
        futures = [pool.submit(_fetch_one, file, dataset, folder, source, line) for file in files]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:  # Ctrl-C too: no thread goes on behind the user's back
            line.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _fetch_one(file: File, dataset: Dataset, folder: Path, source: Path | None, line: TransferOptions) -> None:
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    copy = _copy_of(file, dataset, source)
    if copy is None:
        download(dataset.address(file) or "", target, file, line)
        return
    shutil.copyfile(copy, partial_of(target))
    line.progress(file.bytes)
    accept(partial_of(target), target, file, str(copy))


def _copy_of(file: File, dataset: Dataset, source: Path | None) -> Path | None:
    """The file in the mirror, if there is a mirror and it has the file."""
    path = source / dataset.name / file.path if source else None
    return path if path and path.is_file() else None
