"""Run bundles over the test split of `data/<model>/manifest.parquet` and gather what promotion decides on."""

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
    """What both do on the test split of the manifest at `path`; each through its own preprocessing, timed side by side.

    Raises LooplineError where the test split is empty, or made for another task than a bundle.
    """
    test = manifest.load_split(path, "test")
    made_for = manifest.task(path)
    bundles = [bundle for bundle in (challenger, champion) if bundle is not None]
    for bundle in bundles:
        if bundle.manifest.spec.task != made_for:
            raise LooplineError(
                f"{path} is for {made_for}, but bundle {bundle.version:.12} is for {bundle.manifest.spec.task}"
            )
    if not test.ids:
        raise LooplineError(f"{path} has no test sample: nothing can be decided on it")
    inputs = [_inputs(bundle, test) for bundle in bundles]
    one = [{name: value[:1] for name, value in given.items()} for given in inputs]
    seconds = sessions.side_by_side(bundles[0].model, bundles[-1].model, one[0], one[-1])
    masks = _masks(test, inputs[0], champion)
    found = [
        _evidence(bundle, test, given, masks, spent)
        for bundle, given, spent in zip(bundles, inputs, (seconds["a"], seconds["b"]), strict=False)
    ]
    return found[0], found[1] if champion is not None else None


def test_set_hash(test: Split) -> str:
    """Two models can be compared where this is the same: sha256 over the samples' ids, labels and boxes."""
    digest = hashlib.sha256("\n".join([*test.labels, "", *test.ids]).encode())
    for target in test.targets:
        digest.update(np.ascontiguousarray(target).tobytes())
    return digest.hexdigest()


def align(outputs: Arrays, labels: tuple[str, ...], wanted: tuple[str, ...]) -> Arrays:
    """A model's outputs as if its labels were `wanted`, which holds all of them; others it never says."""
    if labels == wanted:
        return outputs
    place = np.array([wanted.index(label) for label in labels], np.int64)
    found = dict(outputs)
    if "probabilities" in outputs:
        found["probabilities"] = np.zeros((len(outputs["probabilities"]), len(wanted)), np.float32)
        found["probabilities"][:, place] = outputs["probabilities"]
    if "classes" in outputs:
        found["classes"] = place[outputs["classes"]]
    return found


def _inputs(bundle: Bundle, test: Split) -> Arrays:
    task = tasks.find(bundle.manifest.spec.task)
    inputs: Arrays = task.preprocessor(bundle.manifest.spec, bundle.folder)(test.inputs)
    return inputs


def _masks(test: Split, inputs: Arrays, champion: Bundle | None) -> dict[str, NDArray[np.bool_]]:
    """The slices by name. If there are labels that the champion does not know, one holds the samples without them."""
    found = {
        f"{trait} {third}": mask
        for trait, values in slices.traits(inputs, test.inputs, test.sizes).items()
        for third, mask in slices.thirds(values).items()
    }
    if champion is not None and test.labels:
        known = np.array([label in champion.manifest.spec.labels for label in test.labels])
        mask = np.array(
            [
                known[np.reshape(target, (-1, 5))[:, 0].astype(int) if np.ndim(target) else target].all()
                for target in test.targets
            ]
        )
        if mask.any() and not known.all():
            found["labels the champion knows"] = mask
    return found


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
