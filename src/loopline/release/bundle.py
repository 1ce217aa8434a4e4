"""The bundle, `models/<name>/bundle/`: the files that a server needs and no others. Imports numpy and the standard library only.

    model.onnx      the graph that serves              bundle.json    see `Manifest`
    drift.json      reference bins and thresholds      MODEL_CARD.md  with its `pictures/`
    tokenizer.json  for text                           golden.json    samples with their answers, for the sentinel
    SHA256SUMS      sums of all other files in the format of `sha256sum -c`

A bundle's version is the hash of its content. A bundle holds no time, run id, git revision, timing or absolute path, so two
clean runs give the same bytes. Models are ONNX and data is JSON, so loading a bundle runs no code.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from loopline.errors import LooplineError
from loopline.tasks.spec import ModelSpec, model_name

SCHEMA_VERSION = 1
SUMS = "SHA256SUMS"
REQUIRED = ("model.onnx", "bundle.json", "drift.json", "MODEL_CARD.md")
Datatype = Literal["BOOL", "UINT8", "INT8", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"]
_SUM = re.compile(r"([0-9a-f]{64})  (.+)")
_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)*", re.ASCII)  # no '..', no leading '/', no '\', no hidden files


class BundleError(LooplineError):
    """A bundle is incomplete, changed, or of another schema. The message names the file."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of the graph in terms of the Open Inference Protocol v2; a dimension of -1 is free."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The origin of the model: the sha256 of the manifest, of the settings and of the code that made it."""

    data: str
    parameters: str
    code: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `bundle.json`.

    spec: task, labels, preprocessing, post-processing thresholds and temperature. quantization: number format of `model.onnx`.
    metrics: `headline` (name of a metric), `n` (test samples), `metrics` (name -> value and 95 % interval: low, high), and `unjudged`
    if no gate judged them.
    """

    name: str
    spec: ModelSpec
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    quantization: Literal["int8", "fp32"]
    metrics: dict[str, Any]
    lineage: Lineage

    @property
    def unjudged(self) -> bool:
        """Whether no gate judged the model's quality, because there were too few labelled samples."""
        return bool(self.metrics.get("unjudged"))

    def to_json(self) -> str:
        """Return the text of `bundle.json`, the same bytes for the same content."""
        content = {"schema": SCHEMA_VERSION} | {f.name: getattr(self, f.name) for f in fields(self)}
        content |= {"spec": self.spec.to_dict(), "lineage": asdict(self.lineage)}
        content |= {side: [asdict(tensor) for tensor in getattr(self, side)] for side in ("inputs", "outputs")}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Reverse `to_json`. Raises BundleError on another schema, a missing field or an unknown field."""
        try:
            content: dict[str, Any] = json.loads(text)
            schema = content.pop("schema")
            if schema != SCHEMA_VERSION:
                raise BundleError(f"bundle.json has schema {schema}, this version reads {SCHEMA_VERSION}")
            content["spec"] = ModelSpec.from_dict(content["spec"])
            content["lineage"] = Lineage(**content["lineage"])
            for side in ("inputs", "outputs"):
                content[side] = tuple(Tensor(**tensor | {"shape": tuple(tensor["shape"])}) for tensor in content[side])
            model_name(content["name"])
            return cls(**content)
        except ValueError as error:
            raise BundleError(f"bundle.json is not what this version reads: {error}") from error
        except (TypeError, KeyError, AttributeError) as error:
            raise BundleError(f"bundle.json is not what this version reads: {error!r}") from error


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files matched their sums when it was read."""

    folder: Path
    version: str
    manifest: Manifest

    @property
    def model(self) -> Path:
        """The path of the ONNX file."""
        return self.folder / "model.onnx"


def write(
    folder: Path,
    manifest: Manifest,
    *,
    model: Path,
    drift: Path,
    card: str,
    golden: Path | None = None,
    pictures: Sequence[Path] = (),
    tokenizer: Path | None = None,
) -> Bundle:
    """Write a bundle to `folder` in place of an older one. A reader never finds a part of a bundle, or a mixture of two.

    It is written beside `folder`. Then the older one is renamed, and the new one takes its name. Between these two renames there is
    none at `folder`; if the process is killed there, write the bundle again. Raises BundleError if a part is missing or a text model
    has no tokenizer. An older bundle then stays.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
    parts = {"model.onnx": model, "drift.json": drift} | {f"pictures/{path.name}": path for path in pictures}
    parts |= {f"{name}.json": path for name, path in (("golden", golden), ("tokenizer", tokenizer)) if path is not None}
    try:
        for name, source in parts.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, partial / name)
        (partial / "bundle.json").write_text(manifest.to_json(), encoding="utf-8")
        (partial / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        lines = [f"{_sha256(partial / name)}  {name}\n" for name in _names(partial)]
        (partial / SUMS).write_text("".join(lines), encoding="utf-8")
        bundle = read(partial)
        _replace(partial, folder)
    except FileNotFoundError as error:
        raise BundleError(f"{error.filename} not found: it is a part of {folder}; run `dvc repro`") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Bundle(folder, bundle.version, bundle.manifest)


def _replace(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`. A rename cannot replace a folder that holds files, so the old folder is renamed first."""
    old = folder.with_name(folder.name + ".old.partial")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read(folder: Path) -> Bundle:
    """Verify and read the bundle at `folder`. Raises BundleError that names the wrong file."""
    verified = verify(folder)
    manifest = Manifest.from_json((folder / "bundle.json").read_text(encoding="utf-8"))
    if manifest.spec.text and not (folder / "tokenizer.json").exists():
        raise BundleError(f"{folder}: tokenizer.json is missing, which a text model needs")
    return Bundle(folder, verified, manifest)


def verify(folder: Path) -> str:
    """Check every file against SHA256SUMS and return the version. Raises BundleError that names the wrong file."""
    sums = _sums(folder)
    names = set(_names(folder)) - {SUMS}
    for name in [*REQUIRED, *sums]:
        if name not in names:
            raise BundleError(f"{folder}: {name} is missing")
    for name in sorted(names):
        if name not in sums:
            raise BundleError(f"{folder}: {name} is not listed in {SUMS}")
        if _sha256(folder / name) != sums[name]:
            raise BundleError(f"{folder}: {name} was changed after the bundle was made")
    return version(folder)


def version(folder: Path) -> str:
    """Return the bundle's version: the sha256 of the sorted lines of SHA256SUMS. Only `verify` checks these lines."""
    lines = sorted(f"{digest}  {name}\n" for name, digest in _sums(folder).items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sums(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise BundleError(f"{folder} is not a bundle: it has no {SUMS}") from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{folder}/{SUMS} is not text") from error
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = _SUM.fullmatch(line)
        if match is None or not _NAME.fullmatch(match[2]) or match[2] in sums or match[2] == SUMS:
            raise BundleError(f"{folder}/{SUMS}, line {number} is not '<sha256>  <file of this bundle>': {line!r:.80}")
        sums[match[2]] = match[1]
    return sums


def _names(folder: Path) -> list[str]:
    """Return the sorted paths, with '/', of all files under `folder`. Raises BundleError on a link, which could lead elsewhere."""
    names = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BundleError(f"{folder}: {name} is a link or a device; a bundle holds plain files")
        if path.is_file():
            names.append(name)
    return sorted(names)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
