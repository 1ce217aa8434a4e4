"""Run bundles on the test split of `data/<model>/manifest.parquet` and gather the evidence for promotion."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loopline import tasks
from loopline.data import manifest
from loopline.data.manifest import Split
from loopline.errors import LooplineError
from loopline.lib import sessions
from loopline.lib.arrays import Arrays
from loopline.release.bundle import Bundle
from loopline.release.promotion import PromotionEvidence
from loopline.tasks import slices
from loopline.tasks.bootstrap import Scorer
from loopline.tasks.spec import ModelSpec


def gather(
    challenger: Bundle, champion: Bundle | None, path: Path
) -> tuple[PromotionEvidence, PromotionEvidence | None]:
    """Measure both bundles on the test split of the manifest at `path`, with their own preprocessing and timed side by side.

    Raises LooplineError if the test split is empty or the manifest is for another task than a bundle.
    """
    test = manifest.load_split(path, "test")
    task = manifest.task(path)
    bundles = [bundle for bundle in (challenger, champion) if bundle is not None]
    for bundle in bundles:
        if bundle.manifest.spec.task != task:
            raise LooplineError(
                f"{path} is for {task}, but bundle {bundle.version:.12} is for {bundle.manifest.spec.task}"
            )
    if not test.ids:
        raise LooplineError(f"{path} has no test sample to decide on: add samples and run `dvc repro ingest`")
    inputs = [_inputs(bundle, test) for bundle in bundles]
    single = [{name: value[:1] for name, value in arrays.items()} for arrays in inputs]
    seconds = sessions.side_by_side(bundles[0].model, bundles[-1].model, single[0], single[-1])
    masks = _masks(test, inputs[0], champion)
    measured = [
        _evidence(bundle, test, arrays, masks, duration)
        for bundle, arrays, duration in zip(bundles, inputs, (seconds["a"], seconds["b"]), strict=False)
    ]
    return measured[0], measured[1] if champion is not None else None


def test_set_hash(test: Split) -> str:
    """Return the sha256 of the samples' ids, labels and boxes. Models can be compared only if it is the same for both."""
    digest = hashlib.sha256("\n".join([*test.labels, "", *test.ids]).encode())
    for target in test.targets:
        digest.update(np.ascontiguousarray(target).tobytes())
    return digest.hexdigest()


def align(outputs: Arrays, labels: tuple[str, ...], target: tuple[str, ...]) -> Arrays:
    """Return a model's outputs in the label order of `target`, which has all of `labels`. Other labels get probability 0."""
    if labels == target:
        return outputs
    place = np.array([target.index(label) for label in labels], np.int64)
    aligned = dict(outputs)
    if "probabilities" in outputs:
        aligned["probabilities"] = np.zeros((len(outputs["probabilities"]), len(target)), np.float32)
        aligned["probabilities"][:, place] = outputs["probabilities"]
    if "classes" in outputs:
        aligned["classes"] = place[outputs["classes"]]
    return aligned


def _inputs(bundle: Bundle, test: Split) -> Arrays:
    task = tasks.find(bundle.manifest.spec.task)
    inputs: Arrays = task.preprocessor(bundle.manifest.spec, bundle.folder)(test.inputs)
    return inputs


def _masks(test: Split, inputs: Arrays, champion: Bundle | None) -> dict[str, NDArray[np.bool_]]:
    """Return the slices by name. If the champion lacks some labels, one slice holds the samples without these labels."""
    masks = {
        f"{trait} {third}": mask
        for trait, values in slices.traits(inputs, test.inputs, test.sizes).items()
        for third, mask in slices.thirds(values).items()
    }
    if champion is not None and test.labels:
        is_known = np.array([label in champion.manifest.spec.labels for label in test.labels])
        mask = np.array(
            [
                is_known[np.reshape(target, (-1, 5))[:, 0].astype(int) if np.ndim(target) else target].all()
                for target in test.targets
            ]
        )
        if mask.any() and not is_known.all():
            masks["labels the champion knows"] = mask
    return masks


def _evidence(
    bundle: Bundle, test: Split, inputs: Arrays, masks: dict[str, NDArray[np.bool_]], seconds: float
) -> PromotionEvidence:
    spec = bundle.manifest.spec
    task = tasks.find(spec.task)
    labels = test.labels + tuple(label for label in spec.labels if label not in test.labels)
    outputs = align(sessions.run(bundle.model, inputs), spec.labels, labels)
    aligned: ModelSpec = replace(spec, labels=labels)
    scorer: Scorer = task.scorer(outputs, test, aligned)
    parts = {name: (slices.restrict(scorer, mask), task.headline) for name, mask in masks.items()}
    sizes = {name: int(mask.sum()) for name, mask in masks.items()}
    for number, (label, score) in enumerate(task.per_class(outputs, test, aligned).items()):
        if label in test.labels:
            parts[f"class {label}"] = (score, next(iter(score(None))))
            sizes[f"class {label}"] = slices.samples_of(number, test.targets)
    small = {name: size for name, size in sizes.items() if size < slices.LEAST}
    return PromotionEvidence(
        version=bundle.version,
        test_set=test_set_hash(test),
        n=len(test.ids),
        labels=spec.labels,
        scorer=scorer,
        parts={name: part for name, part in parts.items() if name not in small},
        small=small,
        bytes=bundle.model.stat().st_size,
        seconds=seconds,
    )
