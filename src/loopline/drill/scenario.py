"""What happens to the traffic: the samples before the drift, those in it, and what it is called.

Images: the camera wears out. Texts: they come from elsewhere, where the data set has a companion with the same classes; else whoever
types grows careless. Samples that people label are never those that accuracy is measured on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loopline import settings
from loopline.data import catalog, manifest
from loopline.errors import LooplineError
from loopline.monitoring import companions, shifts
from loopline.tasks.spec import ModelSpec

WORN = (("blur", 2), ("noise", 2))  # shift, strength
CARELESS = (("typos", 3),)
MOST = 20_000  # samples of each split


class Sample(NamedTuple):
    """A request's body, its class, and the split that it is from."""

    body: bytes
    label: str
    part: str


@dataclass(frozen=True)
class Pools:
    """What may be sent before the drift and in it. drift: a sentence; short: two words."""

    clean: list[Sample]
    drifted: list[Sample]
    drift: str = "drift"
    short: str = "drift"
    content_type: str = "application/octet-stream"


def pools(project: Path, model: str, spec: ModelSpec, dataset: str | None = None, seed: int = 0) -> Pools:
    """Of a model with one class a sample. Clean: test and validation split; drifted: test and training split, or another data set.

    dataset: that texts come from; of it, what is of the model's classes. Raises LooplineError where one of these is not in it.
    """
    path, rng = project / "data" / model / "manifest.parquet", np.random.default_rng(seed)
    clean = [*_samples(path, "val", spec, (), rng), *_samples(path, "test", spec, (), rng)]

    def shifted(by: Iterable[tuple[str, int]]) -> list[Sample]:
        return [*_samples(path, "test", spec, by, rng), *_samples(path, "train", spec, by, rng)]

    if spec.image is not None:
        return Pools(clean, shifted(WORN), "The camera wears out: blur and noise", "worn camera")
    companion = companions.COMPANIONS.get(settings.model(model, project / "params.yaml")[1].dataset)
    known = catalog.load().get(companion or "")
    if dataset or (companion and known and set(known.labels.values()) >= set(spec.labels)):
        name = dataset or companion or ""
        found = [(_body(one.text), one.label or "") for one in companions.read(name, "text", MOST)]
        found = [one for one in found if one[1] in spec.labels]
        if missing := sorted(set(spec.labels) - {label for _, label in found}):
            raise LooplineError(
                f"{name} has no {missing[0]!r}, which the model knows: name a data set with its classes"
            )
        drifted = [Sample(*one, "train" if number % 2 else "test") for number, one in enumerate(found)]
        return Pools(clean, drifted, f"Texts come from elsewhere: {name}", "other texts", "application/json")
    return Pools(clean, shifted(CARELESS), "Whoever types grows careless: typos", "typos", "application/json")


def _samples(
    path: Path, part: str, spec: ModelSpec, by: Iterable[tuple[str, int]], rng: np.random.Generator
) -> list[Sample]:
    split = manifest.load_split(path, part)
    found = []
    for number in rng.permutation(len(split.inputs))[:MOST]:
        given: Any = split.inputs[number]
        for name, strength in by:
            given = shifts.shifted(given, name, strength, rng)
        found.append(Sample(_body(given), spec.labels[int(split.targets[number])], part))
    return found


def _body(given: Any) -> bytes:
    return json.dumps({"text": given}).encode() if isinstance(given, str) else given
