"""`loopline adopt`: somebody's finished model becomes a model of this repository, with the same gates and the same bundle.

It enters params.yaml as a model whose `train` is `{adopt: PATH}`. Then the pipeline makes its bundle as it makes any other.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopline.cli.verbs import Verbs, verb
from loopline.errors import LooplineError

LOCK = Path("dvc.lock")
# Fewer samples in the validation or test split give an interval of the accuracy that is over ten points wide (at .9).
LEAST_JUDGED = 140
GATES = {"val": "quantize (whether INT8 ships)", "test": "evaluate (the floor, the simple model) and a promotion"}


def block(
    train: dict[str, Any],
    data: str,
    takes: dict[str, Any],
    limits: Mapping[str, Mapping[str, Any]],
    options: argparse.Namespace,
) -> str:
    """The model's part of params.yaml, as text."""
    import yaml

    from loopline import tasks

    task = tasks.find(options.task)
    settings: dict[str, Any] = {
        "task": options.task,
        "dataset": data,
        "split": {"seed": 0, "val": 0.3, "test": 0.4},
        "expectations": {
            "min_samples": 2 * LEAST_JUDGED,
            "min_per_class": 5,
            "max_imbalance": 100,
            "max_set_aside": 0.1,
        },
        "input": takes,
        "train": train,
        "export": {"tolerance": 0.0001, "embedding": 8},
        "quantize": {"precision": "auto", "calibration_samples": 256, "max_loss": 0.01, "tolerance": 0.02},
        "evaluate": {"floors": {task.headline: options.floor}, "must_beat_simple": not options.simple_may_win},
        "calibrate": {"bins": 10, "false_alarms": 0.05},
    }
    for part, values in limits.items():
        settings[part] |= values
    if options.unjudged:
        settings["expectations"] |= {"min_samples": 1, "min_per_class": 1}
        settings["quantize"]["precision"] = "fp32"
        settings["evaluate"] = {"floors": {}, "must_beat_simple": False, "unjudged": True}
    lines = yaml.safe_dump(
        {options.name: settings}, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True
    )
    return "".join(f"  {line}\n" for line in lines.splitlines())


def with_block(text: str, added: str) -> str:
    """The text of params.yaml with one more model at the end of `models:`. Comments stay. Raises LooplineError without `models:`."""
    lines = text.splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if line.startswith("models:")]
    if not starts:
        raise LooplineError("params.yaml has no line models:")
    after = starts[0] + 1
    while after < len(lines) and (lines[after].strip() == "" or lines[after][0] in " #"):
        after += 1
    while lines[after - 1].strip() == "":
        after -= 1
    return "".join([*lines[:after], "\n", added, *lines[after:]])


def undecided(splits: dict[str, int]) -> list[str]:
    """What the gates cannot judge with so few labelled samples: a sentence for each split that is too small."""
    return [
        f"{splits.get(split, 0)} samples in the {split} split: {gates} cannot judge with fewer than {LEAST_JUDGED}"
        for split, gates in GATES.items()
        if splits.get(split, 0) < LEAST_JUDGED
    ]


def _adopt(options: argparse.Namespace) -> int:
    from loopline import settings, tasks
    from loopline.lib import files
    from loopline.stages import stage_files

    configured = settings.load()
    if options.name in configured.models:
        raise LooplineError(f"params.yaml has a model {options.name!r}: choose another --name")
    trainer: Any = tasks.find(options.task).trainer()
    if not hasattr(trainer, "adoptable"):
        raise LooplineError(f"--task: finished models for {options.task} cannot be adopted")
    finished = trainer.adoptable(options.source)
    takes = dict(finished.input)
    if "max_tokens" in takes:
        takes["max_tokens"] = min(options.max_tokens, takes["max_tokens"])
    source, data = (_path(each) for each in (options.source, options.data))
    before = {path: path.read_text(encoding="utf-8") for path in (settings.PARAMS, LOCK) if path.exists()}
    added = block({"adopt": source, "weights_sha256": finished.weights_sha256}, data, takes, finished.limits, options)
    files.write(settings.PARAMS, with_block(before[settings.PARAMS], added))
    try:
        settings.load()
        _repro(f"ingest@{options.name}")
        counts = stage_files.read_json(stage_files.manifest(options.name).with_name("ingest.json"))
        reasons = undecided(counts["splits"])
        if reasons and not options.unjudged:
            few = f"{options.data} has too few labelled samples, so nothing would judge the model (or give --unjudged):"
            raise LooplineError("\n  ".join([few, *reasons]))
        _repro(f"package@{options.name}")
    except BaseException:  # an interrupt too: no half of a model stays in params.yaml
        LOCK.unlink(missing_ok=True)
        for path, text in before.items():
            files.write(path, text)
        raise
    print(f"models/{options.name}/bundle is made; params.yaml has the model. Next: make serve MODEL={options.name}")
    return 0


def _path(given: str) -> str:
    """A path as params.yaml holds it: relative inside the repository, and a name of no file as it is."""
    path = Path(given).expanduser()
    if not path.exists():
        return given
    relative = os.path.relpath(path)
    # A link stays one: what lies beside it belongs to it
    return str(path.parent.resolve() / path.name) if relative.startswith("..") else relative


def _repro(target: str) -> None:
    """Run the pipeline up to a stage. Raises LooplineError if it fails: the stage has said why."""
    import subprocess

    if subprocess.run(["dvc", "repro", target], check=False).returncode:  # noqa: S607 - of this environment
        raise LooplineError(f"dvc repro {target} failed, as said above. params.yaml and dvc.lock are as they were")


def add(verbs: Verbs) -> None:
    """Add this verb to the command line."""
    adopt = verb(verbs, "adopt", _adopt, "make a bundle of a finished model, without training, through every gate")
    adopt.add_argument("source", help="finished model: a folder of transformers, a .pt of ultralytics, or an .onnx")
    adopt.add_argument("--name", required=True, help="name of the model in params.yaml")
    adopt.add_argument("--task", default="text", help="kind of the model")
    adopt.add_argument("--data", required=True, help="labelled data: a folder, or a data set of the catalogue")
    adopt.add_argument("--max-tokens", type=int, default=256, help="number of tokens after which a text is cut")
    adopt.add_argument(
        "--floor", type=float, default=0.5, help="least accuracy (detection: mAP50) on the test split, 0 to 1"
    )
    adopt.add_argument(
        "--simple-may-win",
        action="store_true",
        help="accept a model that is no better than a simple one on the same data",
    )
    adopt.add_argument(
        "--unjudged",
        action="store_true",
        help="let the model ship in FP32 without a gate of its quality, which its card, the registry and servers then say",
    )
