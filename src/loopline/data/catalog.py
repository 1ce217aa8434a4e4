"""The catalogue of datasets: a strict reader of `data/catalog.yaml` and of the file lists beside it.

`loopline data list` prints `listing()`.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pydantic import Field, ValidationError, field_validator, model_validator

from loopline.errors import LooplineError
from loopline.settings import Strict, read_yaml, repository

CATALOG = Path("data/catalog.yaml")
DATASETS = Path(".loopline/datasets")  # in the repository, for downloads: <name>/<path>


class File(Strict):
    """One file of a dataset: its local path, its origin, its size in bytes and its sha256."""

    path: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    from_: str | None = Field(default=None, alias="from")
    mirror_only: bool = False

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or not path:
            raise ValueError("must be a relative path that stays inside the dataset's folder")
        return path


class FileList(Strict):
    """A tab-separated table of many files beside the catalogue, with the columns sha256, bytes and path."""

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Dataset(Strict):
    """One entry of the catalogue."""

    name: str
    description: str
    task: str
    format: str  # "embedded", or the name of one of `formats`
    samples: int = Field(ge=1)
    licence: str
    citation: str
    labels: dict[str, str] = Field(default={})  # label in the files -> class name
    url: str | None = None
    files: tuple[File, ...] = ()
    file_list: FileList | None = None

    @model_validator(mode="after")
    def _has_files(self) -> Dataset:
        if (self.format == "embedded") == bool(self.files):
            raise ValueError("an embedded dataset must have no files, any other dataset needs some")
        return self

    @property
    def bytes(self) -> int:
        """The size of all files in bytes, 0 for an embedded dataset."""
        return sum(file.bytes for file in self.files)

    def address(self, file: File) -> str | None:
        """The URL of one of the files, None if it has none."""
        if self.url is None or file.mirror_only:
            return None
        return self.url.replace("{from}", file.from_ or file.path)


def load(path: Path = CATALOG) -> dict[str, Dataset]:
    """Read the catalogue: name -> dataset. Raises LooplineError, which names each wrong key."""
    entries = read_yaml(path)
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise LooplineError(f"{path} must map names to datasets")
    datasets = {}
    for name, entry in entries.items():
        try:
            listed = FileList.model_validate(entry["file_list"]) if "file_list" in entry else None
            files = _listed(path.parent / listed.path, listed) if listed else entry.get("files", ())
            datasets[name] = Dataset.model_validate({**entry, "name": name, "files": files})
        except ValidationError as error:
            lines = [f"  {name}.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise LooplineError(f"{path} has {len(lines)} wrong entries:\n" + "\n".join(lines)) from error
    return datasets


def _listed(path: Path, expected: FileList) -> list[dict[str, str]]:
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != expected.sha256:
        raise LooplineError(
            f"{path} is missing or changed, but the catalogue pins its sha256: run `git checkout {path}`"
        )
    return list(csv.DictReader(content.decode().splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))


def find(name: str, catalog: dict[str, Dataset] | None = None) -> Dataset:
    """The entry `name`. Raises LooplineError with the nearest names if there is none."""
    catalog = load() if catalog is None else catalog
    if name in catalog:
        return catalog[name]
    raise LooplineError(f"no dataset {name!r} in {CATALOG}{suggest(name, catalog)}")


def suggest(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest names first, then all of them."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=2)
    return (f": did you mean {' or '.join(near)}?" if near else ":") + f" There are {', '.join(names)}."


def mirror() -> Path | None:
    """The folder in LOOPLINE_MIRROR, laid out as `<dataset>/<path>`. Raises LooplineError if it does not exist."""
    value = os.environ.get("LOOPLINE_MIRROR")
    if not value:
        return None
    if not Path(value).is_dir():
        raise LooplineError(f"LOOPLINE_MIRROR={value} is not a folder: set it to a folder, or unset it to download")
    return Path(value)


def whereabouts(dataset: Dataset, *, root: Path | None = None) -> str:
    """The state of the dataset, judged by file sizes: embedded, downloaded, mirror, or how much is missing."""
    root = root or repository() / DATASETS
    if dataset.format == "embedded":
        return "embedded"
    missing = _missing(dataset, root / dataset.name)
    if not missing:
        return "downloaded"
    folder = mirror()
    if folder is not None and not _missing(dataset, folder / dataset.name):
        return "mirror"
    if len(missing) < len(dataset.files):
        return f"{len(missing)} of {len(dataset.files)} files missing"
    return "mirror only" if any(file.mirror_only for file in dataset.files) else "not downloaded"


def _missing(dataset: Dataset, folder: Path) -> list[File]:
    def size(path: Path) -> int:
        return path.stat().st_size if path.is_file() else -1

    return [file for file in dataset.files if size(folder / file.path) != file.bytes]


def listing(path: Path = CATALOG, *, root: Path | None = None) -> str:
    """The catalogue as a table: name, task, samples, size, licence and state."""
    header = ("NAME", "TASK", "SAMPLES", "SIZE", "LICENCE", "WHERE")
    rows = [header]
    for dataset in load(path).values():
        size = f"{dataset.bytes / 1e6:.1f} MB" if dataset.files else "-"
        licence = dataset.licence.partition(";")[0]
        where = whereabouts(dataset, root=root)
        rows.append((dataset.name, dataset.task, f"{dataset.samples:,}", size, licence, where))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = "<<>><<"  # numbers are right-aligned
    line = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    return "\n".join(line.format(*row).rstrip() for row in rows)
