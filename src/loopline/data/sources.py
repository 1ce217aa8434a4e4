"""Open the dataset that `dataset:` in params.yaml names (in the catalogue, or a folder), and a model's labelled batches.

Reads `data/catalog.yaml`, `.loopline/datasets/` (after a download if needed), `data/batches/<model>/`, or the user's folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from loopline import settings, tasks
from loopline.data import catalog, download, formats
from loopline.data.catalog import Dataset
from loopline.data.raw import RawSample
from loopline.errors import LooplineError

BATCHES = Path("data/batches")
_VERSION = re.compile(r"v(\d+)")


def open_dataset(dataset: str, task: str, *, unused: bool = False, group: str | None = None) -> Iterator[RawSample]:
    """The samples of a dataset in the catalogue, or of a folder or file in any format that `formats` recognises.

    unused: whether to yield files that are not samples too. group: the column that names groups. Downloads missing files.
    Raises LooplineError if there is no such dataset, or if it is for another task.
    """
    datasets = catalog.load()
    if dataset in datasets:
        return _open_listed(datasets[dataset], task, datasets, group)
    folder = settings.located(dataset)
    if folder.exists():
        return formats.read(folder, task, unused=unused, group=group)
    raise LooplineError(
        f"dataset: {dataset!r} is neither a folder nor a file ({folder.absolute()} does not exist) "
        f"nor a dataset of {catalog.CATALOG}{catalog.suggest(dataset, datasets)}"
    )


def ambiguity(dataset: str) -> str | None:
    """A note if `dataset` names both a dataset in the catalogue, which is read, and a folder; else None."""
    folder = settings.located(dataset)
    if dataset not in catalog.load() or not folder.exists():
        return None
    return (
        f"dataset: {dataset!r} is read from {catalog.CATALOG}, and the folder {folder.absolute()} is ignored. "
        f"To read the folder, write dataset: ./{dataset}"
    )


def open_batches(
    model: str, task: str, *, root: Path = BATCHES, unused: bool = False, group: str | None = None
) -> Iterator[tuple[str, Iterator[RawSample]]]:
    """The labelled batches of a model in the order of their versions: ("v2", its samples), ("v3", ...).

    A `.dvc` file stands for a batch. Raises LooplineError if the batch's own files are missing, or if the folder holds
    anything else.
    """
    folders = [batch_folder(root / model, number) for number in batch_numbers(root / model)]
    return ((folder.name, formats.read(folder, task, unused=unused, group=group)) for folder in folders)


def batch_numbers(folder: Path) -> list[int]:
    """The numbers N of the batches `vN.dvc` in a model's folder, ascending. Raises LooplineError for any other file."""
    numbers = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _VERSION.fullmatch(path.name.removesuffix(".dvc"))
        if path.suffix == ".dvc" and match:
            numbers.append(int(match[1]))
        elif not path.name.startswith(".") and not (match and path.with_name(path.name + ".dvc").exists()):
            raise LooplineError(
                f"{path} is not part of this data version. If it belongs to another one, run `dvc checkout`; "
                f"if it is a new labelled batch, move it away and add it: make data-add MODEL={folder.name} FROM=folder"
            )
    return sorted(numbers)


def batch_folder(folder: Path, number: int) -> Path:
    """The folder of batch `number`. Raises LooplineError if DVC has not created it yet."""
    path = folder / f"v{number}"
    if not path.is_dir():
        raise LooplineError(
            f"{path} is missing, only its .dvc file exists: run `dvc checkout`, or `dvc pull` on a new machine"
        )
    return path


def _open_listed(dataset: Dataset, task: str, datasets: dict[str, Dataset], group: str | None) -> Iterator[RawSample]:
    if not _same_kind(dataset.task, task):
        fitting = ", ".join(name for name, entry in datasets.items() if _same_kind(entry.task, task))
        raise LooplineError(
            f"{dataset.name} is a {dataset.task} dataset, but the model's task is {task}: use one of {fitting}"
        )
    if dataset.format == "embedded":
        module = import_module(f"loopline.data.embedded.{dataset.name.replace('-', '_')}")
        samples: Iterator[RawSample] = module.read()
        return samples
    samples = formats.read(download.fetch(dataset), task, group=group)
    return (replace(s, label=dataset.labels.get(s.label, s.label)) if s.label else s for s in samples)


def _same_kind(first: str, second: str) -> bool:
    """Whether two tasks learn from the same content and truth, and so from the same datasets."""
    kinds = {(task.content, task.truth) for task in map(tasks.find, (first, second))}
    return len(kinds) == 1
