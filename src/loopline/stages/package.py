"""Write the bundle with its model card to `models/<model>/bundle/`, and the evidence to the training's run in MLflow.

Reads what earlier stages wrote to `data/<model>/` and `models/<model>/`. Run by `dvc repro package@<model>`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import loopline
from loopline import settings
from loopline.data import catalog, manifest
from loopline.release import bundle, card
from loopline.stages import stage_files
from loopline.tasks import plugins
from loopline.tasks.spec import ModelSpec

CODE = (  # the code that a bundle depends on: all that any stage in dvc.yaml needs
    "data",
    "drift",
    "errors.py",
    "lib/arrays.py",
    "lib/drawing.py",
    "lib/files.py",
    "lib/locks.py",
    "lib/machine.py",
    "lib/sessions.py",
    "lib/templates.py",
    "release/bundle.py",
    "release/card.py",
    "release/markdown.py",
    "release/mlflow_model.py",
    "release/mlflow_store.py",
    "release/spool.py",
    "release/tracking.py",
    "settings.py",
    "stages",
    "tables",
    "tasks",
    "training",
)


def main(name: str) -> None:
    """Package `name`. Raises LooplineError if a file of an earlier stage is missing."""
    from loopline.release import tracking

    everything, model = settings.model(name)
    data, stages = stage_files.manifest(name), Path("models") / name
    report = stage_files.read_json(stages / "report.json")
    verdict = stage_files.read_json(stages / "quantize" / "verdict.json")
    inputs, outputs = tensors(stages / "quantize" / "model.onnx")
    described = bundle.Manifest(
        name=name,
        spec=ModelSpec.from_dict(stage_files.read_json(stages / "export" / "spec.json")),
        inputs=inputs,
        outputs=outputs,
        quantization=verdict["chosen"],
        metrics={key: report[key] for key in ("headline", "n", "metrics", "unjudged") if key in report},
        lineage=bundle.Lineage(
            data=sha256(data.read_bytes()),
            parameters=stage_files.parameters(everything.seed, model),
            code=code_of(model.task, Path(loopline.__file__).parent),
        ),
    )
    pictures = sorted((stages / "pictures").glob("*.png"))
    tokenizer = stages / "train" / "tokenizer.json"
    written = bundle.write(
        stages / "bundle",
        described,
        model=stages / "quantize" / "model.onnx",
        drift=stages / "calibrate" / "drift.json",
        golden=stages / "calibrate" / "golden.json",
        card=card.card(described, source(name, model), report, verdict, [path.name for path in pictures]),
        pictures=pictures,
        tokenizer=tokenizer if tokenizer.exists() else None,
    )
    tracking.package(
        name,
        weights_sha256=sha256((stages / "train" / "model.safetensors").read_bytes()),
        bundle=written.folder,
        bundle_version=written.version,
        metrics={key: row["value"] for key, row in report["metrics"].items() if row["value"] is not None},
        pictures=pictures,
        reports=[path for path in (Path("reports") / name / "validation.html",) if path.exists()],
    )


def source(name: str, model: settings.ModelSettings) -> card.DataSource:
    """Return what the card says about the data. Only the last part of a folder's path is shown, for its owner's privacy."""
    columns = manifest.table(stage_files.manifest(name), ["source", "split"]).to_pydict()
    counts: dict[str, dict[str, int]] = {}
    for origin, split in zip(columns["source"], columns["split"], strict=True):
        row = counts.setdefault(Path(origin).name, dict.fromkeys(manifest.SPLITS, 0))
        row[split] += 1
    entry = catalog.load().get(model.dataset)
    left_out = stage_files.read_json(stage_files.manifest(name).with_name("ingest.json"))["set_aside"]
    return card.DataSource(
        name=Path(model.dataset).name,
        description=entry.description if entry else None,
        licence=entry.licence if entry else None,
        citation=entry.citation if entry else None,
        counts=dict(sorted(counts.items(), key=lambda item: (-sum(item[1].values()), item[0]))),
        set_aside={reason: row["count"] for reason, row in left_out.items()},
        adopted=isinstance(model.train, settings.Adopt),
    )


def tensors(path: Path) -> tuple[tuple[bundle.Tensor, ...], tuple[bundle.Tensor, ...]]:
    """Return the graph's inputs and outputs in the terms of the Open Inference Protocol."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return tuple(map(_tensor, graph.input)), tuple(map(_tensor, graph.output))


def _tensor(value: Any) -> bundle.Tensor:
    from onnx import TensorProto

    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    datatype: Any = {"FLOAT": "FP32", "FLOAT16": "FP16", "DOUBLE": "FP64", "STRING": "BYTES"}.get(kind, kind)
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)
    return bundle.Tensor(name=value.name, datatype=datatype, shape=shape)


def code_of(task: str, package: Path) -> str:
    """Return the hash of the code in `package` that makes a model, and of the folder of a task that another package brings."""
    code, elsewhere = code_hash(package, CODE), plugins.folder_elsewhere(task)
    return sha256(f"{code}{code_hash(elsewhere, ['.'])}".encode()) if elsewhere else code


def code_hash(package: Path, rooms: Iterable[str]) -> str:
    """Return the sha256 over the sorted paths and sha256 of all Python files in `rooms`, files or folders of the package."""
    places = [package / room for room in rooms]
    paths = sorted(path for place in places for path in ([place] if place.is_file() else place.rglob("*.py")))
    lines = [f"{sha256(path.read_bytes())}  {path.relative_to(package).as_posix()}\n" for path in paths]
    return sha256("".join(lines).encode())


def sha256(content: bytes) -> str:
    """Return the sha256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
