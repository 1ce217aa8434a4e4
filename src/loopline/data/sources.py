"""Opens what `dataset:` in params.yaml names, a dataset of the catalogue or a folder, and a model's labelled batches.

Reads `data/catalog.yaml`, `.loopline/datasets/` (fetched if need be), `data/batches/<model>/`, or the user's folder.
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
    """The samples of a dataset of the catalogue, or of a folder or a file in any format that `formats` recognises.

    unused: whether files that are not samples follow too. group: the column that names groups. Downloads what is not here
    yet. Raises LooplineError if there is no such dataset, or if it is for another task.
    """
    known = catalog.load()
    if dataset in known:
        return _open_known(known[dataset], task, known, group)
    folder = settings.located(dataset)
    if folder.exists():
        return formats.read(folder, task, unused=unused, group=group)
    raise LooplineError(
        f"dataset: {dataset!r} is neither a folder nor a file ({folder.absolute()} is not there) "
        f"nor a dataset of {catalog.CATALOG}{catalog.suggest(dataset, known)}"
    )


def ambiguity(dataset: str) -> str | None:
    """A note where `dataset` names a dataset of the catalogue and a folder as well: the catalogue's is read."""
    folder = settings.located(dataset)
    if dataset not in catalog.load() or not folder.exists():
        return None
    return (
        f"dataset: {dataset!r} is the one of {catalog.CATALOG}; the folder {folder.absolute()} is not read. "
        f"To read the folder, write dataset: ./{dataset}"
    )


def open_batches(
    model: str, task: str, *, root: Path = BATCHES, unused: bool = False, group: str | None = None
) -> Iterator[tuple[str, Iterator[RawSample]]]:
    """The labelled batches of a model in the order of their versions: ("v2", its samples), ("v3", ...).

    A batch is there if its `.dvc` file is. Raises LooplineError if its files are not, or if something
    else lies beside it.
    """
    folders = [batch_folder(root / model, number) for number in batch_numbers(root / model)]
    return ((folder.name, formats.read(folder, task, unused=unused, group=group)) for folder in folders)


def batch_numbers(folder: Path) -> list[int]:
    """The numbers N of the batches `vN.dvc` in a model's folder, ascending. Raises LooplineError on other things."""
    numbers = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _VERSION.fullmatch(path.name.removesuffix(".dvc"))
        if path.suffix == ".dvc" and match:
            numbers.append(int(match[1]))
        elif not path.name.startswith(".") and not (match and path.with_name(path.name + ".dvc").exists()):
            raise LooplineError(
                f"{path} is not part of this data version. If it is left from another one, run `dvc checkout`; "
                f"if it is a new labelled batch, move it away and add it: make data-add MODEL={folder.name} FROM=folder"
            )
    return sorted(numbers)


def batch_folder(folder: Path, number: int) -> Path:
    """Where the files of batch `number` are. Raises LooplineError if DVC has not put them there yet."""
    path = folder / f"v{number}"
    if not path.is_dir():
        raise LooplineError(
            f"{path} is not here, only its .dvc file: run `dvc checkout`, or `dvc pull` on a new machine"
        )
    return path


def _open_known(dataset: Dataset, task: str, known: dict[str, Dataset], group: str | None) -> Iterator[RawSample]:
    if not _same_kind(dataset.task, task):
        fitting = ", ".join(name for name, entry in known.items() if _same_kind(entry.task, task))
        raise LooplineError(
            f"{dataset.name} is a {dataset.task} dataset, the model's task is {task}: take one of {fitting}"
        )
    if dataset.format == "embedded":
        module = import_module(f"loopline.data.embedded.{dataset.name.replace('-', '_')}")
        samples: Iterator[RawSample] = module.read()
        return samples
    samples = formats.read(download.fetch(dataset), task, group=group)
    return (replace(s, label=dataset.labels.get(s.label, s.label)) if s.label else s for s in samples)


def _same_kind(first: str, second: str) -> bool:
    """Whether two tasks learn from the same content and truth, and so from each other's data sets."""
    kinds = {(task.content, task.truth) for task in map(tasks.find, (first, second))}
    return len(kinds) == 1
