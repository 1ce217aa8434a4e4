"""The drill's traffic: the samples before and during the drift, and the drift's name.

Images drift by a worn camera. Texts come from another data set if the model's own has a companion with the same classes; otherwise
they get typos. Samples that people label are never used to measure accuracy.
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
MOST = 20_000  # at most this many samples of each split


class ScenarioSample(NamedTuple):
    """A request: its body, the sample's class, and its split."""

    body: bytes
    label: str
    part: str


@dataclass(frozen=True)
class Pools:
    """The samples to send before and during the drift. drift: its description. short: its name in two words."""

    clean: list[ScenarioSample]
    drifted: list[ScenarioSample]
    drift: str = "drift"
    short: str = "drift"
    content_type: str = "application/octet-stream"


def pools(project: Path, model: str, spec: ModelSpec, dataset: str | None = None, labels: int = 0) -> Pools:
    """The samples for a model with one class per sample.

    Clean samples are the test and validation splits. Drifted ones are shifted test and training splits, or another data set.
    dataset: the data set of the drifted texts; its samples of other classes are left out. labels: how many labels people must give.
    Raises LooplineError if the data set lacks a class of the model, or fewer samples can be labelled.
    """
    path, rng = project / "data" / model / "manifest.parquet", np.random.default_rng(0)
    clean = [*_samples(path, "val", spec, (), rng), *_samples(path, "test", spec, (), rng)]
    if spec.image is not None:
        result = Pools(clean, _shifted(path, spec, WORN, rng), "The camera wears out: blur and noise", "worn camera")
    elif source := dataset or _companion(project, model, spec):
        drift = f"The texts come from another data set: {source}"
        result = Pools(clean, _elsewhere(source, spec), drift, "other texts", "application/json")
    else:
        drifted = _shifted(path, spec, CARELESS, rng)
        result = Pools(clean, drifted, "People type carelessly: typos", "typos", "application/json")
    can_label = sum(sample.part == "train" for sample in result.drifted)
    if can_label < labels:
        raise LooplineError(f"--labels {labels}: people can label only {can_label} samples of this drift")
    return result


def _companion(project: Path, model: str, spec: ModelSpec) -> str | None:
    """The companion of the model's data set if it has all of the model's classes, else None."""
    name = other_domain.COMPANIONS.get(settings.model(model, project / "params.yaml")[1].dataset)
    entry = catalog.load().get(name or "")
    return name if entry and set(entry.labels.values()) >= set(spec.labels) else None


def _elsewhere(name: str, spec: ModelSpec) -> list[ScenarioSample]:
    """Texts of another data set; people label every second one."""
    read = [(_body(sample.text), sample.label or "") for sample in other_domain.read(name, spec.task, MOST)]
    usable = [(body, label) for body, label in read if label in spec.labels]
    if missing := sorted(set(spec.labels) - {label for _, label in usable}):
        raise LooplineError(f"{name} lacks the model's class {missing[0]!r}: name a data set with all of its classes")
    return [ScenarioSample(*sample, "train" if number % 2 else "test") for number, sample in enumerate(usable)]


def _shifted(
    path: Path, spec: ModelSpec, by: Sequence[tuple[str, int]], rng: np.random.Generator
) -> list[ScenarioSample]:
    return [*_samples(path, "test", spec, by, rng), *_samples(path, "train", spec, by, rng)]


def _samples(
    path: Path, part: str, spec: ModelSpec, by: Sequence[tuple[str, int]], rng: np.random.Generator
) -> list[ScenarioSample]:
    split = manifest.load_split(path, part)
    samples = []
    for number in rng.permutation(len(split.inputs))[:MOST]:
        shifted: Any = split.inputs[number]
        for name, strength in by:
            shifted = shifts.shifted(shifted, name, strength, rng)
        samples.append(ScenarioSample(_body(shifted), spec.labels[int(split.targets[number])], part))
    return samples


def _body(given: Any) -> bytes:
    return json.dumps({"text": given}).encode() if isinstance(given, str) else given
