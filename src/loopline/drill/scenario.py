"""What happens to the traffic: the samples before the drift, those in it, and what it is called.

Images: the camera wears out. Texts: they come from elsewhere, where the data set has a companion with the same classes; else whoever
types grows careless. Samples that people label are never those that accuracy is measured on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loopline import settings
from loopline.data import catalog, manifest
from loopline.errors import LooplineError
from loopline.simulate import other_domain, shifts
from loopline.tasks.spec import ModelSpec

WORN = (("blur", 2), ("noise", 2))  # shift, strength
CARELESS = (("typos", 3),)
MOST = 20_000  # samples of each split


class ScenarioSample(NamedTuple):
    """A request's body, its class, and the split that it is from."""

    body: bytes
    label: str
    part: str


@dataclass(frozen=True)
class Pools:
    """What may be sent before the drift and in it. drift: a sentence; short: two words."""

    clean: list[ScenarioSample]
    drifted: list[ScenarioSample]
    drift: str = "drift"
    short: str = "drift"
    content_type: str = "application/octet-stream"


def pools(project: Path, model: str, spec: ModelSpec, dataset: str | None = None, labels: int = 0) -> Pools:
    """Of a model with one class a sample. Clean: test and validation split; drifted: test and training split, or another data set.

    dataset: that texts come from; of it, what is of the model's classes. labels: that people are to give. Raises LooplineError
    where a class of the model is not in the data set, and where fewer samples can be labelled.
    """
    path, rng = project / "data" / model / "manifest.parquet", np.random.default_rng(0)
    clean = [*_samples(path, "val", spec, (), rng), *_samples(path, "test", spec, (), rng)]
    if spec.image is not None:
        found = Pools(clean, _shifted(path, spec, WORN, rng), "The camera wears out: blur and noise", "worn camera")
    elif source := dataset or _companion(project, model, spec):
        said = f"Texts come from elsewhere: {source}"
        found = Pools(clean, _elsewhere(source, spec), said, "other texts", "application/json")
    else:
        drifted = _shifted(path, spec, CARELESS, rng)
        found = Pools(clean, drifted, "Whoever types grows careless: typos", "typos", "application/json")
    people = sum(sample.part == "train" for sample in found.drifted)
    if people < labels:
        raise LooplineError(f"--labels {labels}: people can label {people} samples of this drift at most")
    return found


def _companion(project: Path, model: str, spec: ModelSpec) -> str | None:
    """The companion of the model's data set, if it has the model's classes."""
    name = other_domain.COMPANIONS.get(settings.model(model, project / "params.yaml")[1].dataset)
    known = catalog.load().get(name or "")
    return name if known and set(known.labels.values()) >= set(spec.labels) else None


def _elsewhere(name: str, spec: ModelSpec) -> list[ScenarioSample]:
    """Texts of another data set, every second one for people to label."""
    found = [(_body(one.text), one.label or "") for one in other_domain.read(name, spec.task, MOST)]
    found = [one for one in found if one[1] in spec.labels]
    if missing := sorted(set(spec.labels) - {label for _, label in found}):
        raise LooplineError(f"{name} has no {missing[0]!r}, which the model knows: name a data set with its classes")
    return [ScenarioSample(*one, "train" if number % 2 else "test") for number, one in enumerate(found)]


def _shifted(
    path: Path, spec: ModelSpec, by: Sequence[tuple[str, int]], rng: np.random.Generator
) -> list[ScenarioSample]:
    return [*_samples(path, "test", spec, by, rng), *_samples(path, "train", spec, by, rng)]


def _samples(
    path: Path, part: str, spec: ModelSpec, by: Sequence[tuple[str, int]], rng: np.random.Generator
) -> list[ScenarioSample]:
    split = manifest.load_split(path, part)
    found = []
    for number in rng.permutation(len(split.inputs))[:MOST]:
        given: Any = split.inputs[number]
        for name, strength in by:
            given = shifts.shifted(given, name, strength, rng)
        found.append(ScenarioSample(_body(given), spec.labels[int(split.targets[number])], part))
    return found


def _body(given: Any) -> bytes:
    return json.dumps({"text": given}).encode() if isinstance(given, str) else given
