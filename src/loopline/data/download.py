"""Fetch a dataset in the catalogue into `.loopline/datasets/<name>/`, from the mirror if it has the files.

`loopline data fetch NAME` and ingest call it. Every file is verified, wherever it came from: see `transfer`.
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
    """Put every file of the dataset into `root/<name>` and return that folder.

    root: default `.loopline/datasets` of the repository, which its working copies share. timeout, backoff: see
    `transfer.TransferOptions`. Files with the right hash are kept. Raises LooplineError if a file is unavailable or its
    hash differs from the catalogue's; files and parts that arrived before stay for the next try.
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
            f"<folder>/{dataset.name}/ and set LOOPLINE_MIRROR=<folder>; data/catalog.yaml lists their sha256"
        )
    total = sum(file.bytes for file in files)
    # disable=None shows the bar in a terminal and not in a log.
    bar = tqdm(total=total, unit="B", unit_scale=True, desc=dataset.name, disable=None)
    with bar, ThreadPoolExecutor(WORKERS) as pool:
        options = TransferOptions(progress=bar.update, timeout=timeout, backoff=backoff)
        futures = [pool.submit(_fetch_one, file, dataset, folder, source, options) for file in files]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:  # Ctrl-C too: no thread may continue after it
            options.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _fetch_one(file: File, dataset: Dataset, folder: Path, source: Path | None, options: TransferOptions) -> None:
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    copy = _copy_of(file, dataset, source)
    if copy is None:
        download(dataset.address(file) or "", target, file, options)
        return
    shutil.copyfile(copy, partial_of(target))
    options.progress(file.bytes)
    accept(partial_of(target), target, file, str(copy))


def _copy_of(file: File, dataset: Dataset, source: Path | None) -> Path | None:
    """The file in the mirror, None if there is no mirror or it lacks the file."""
    path = source / dataset.name / file.path if source else None
    return path if path and path.is_file() else None
