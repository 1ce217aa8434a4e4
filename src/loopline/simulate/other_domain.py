"""Samples of another domain: for each data set a companion that differs from it, for the traffic profile `other-domain`."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np

from loopline import tasks
from loopline.data.raw import RawSample
from loopline.errors import LooplineError

PROSE = "english-prose"  # the text of Python's language reference, from the standard library
COMPANIONS = {
    "digits": "digit-scenes",
    "digit-scenes": "digits",
    "languages": PROSE,
    "fashion-mnist": "notmnist",
    "rt-polarity": "sentiment-labelled-sentences",
}
LEAST_LETTERS = 20  # letters in a line of prose; lines with fewer are code and rulers


def of(dataset: str) -> str:
    """The companion of a data set. Raises LooplineError if it has none."""
    if dataset not in COMPANIONS:
        raise LooplineError(
            f"{dataset} has no companion: name a data set or folder with --dataset. "
            f"These have one: {', '.join(COMPANIONS)}"
        )
    return COMPANIONS[dataset]


def read(name: str, task: str, most: int, seed: int = 0) -> list[RawSample]:
    """At most `most` samples that a model of this task accepts, drawn at random from a data set of any task or from a folder.

    A folder's labels are read in the task's form. Raises LooplineError if the data set does not exist, has texts but the model
    takes images or the reverse, or has no usable sample.
    """
    rng, content = np.random.default_rng(seed), tasks.find(task).content
    usable = (sample for sample in _open(name, task) if getattr(sample, content) and not sample.problem)
    drawn = heapq.nsmallest(most, usable, key=lambda _: rng.random())  # keeps at most `most` samples in memory
    if not drawn:
        raise LooplineError(f"{name} has no {content}s, which the model needs: name another data set or folder")
    return drawn


def _open(name: str, task: str) -> Iterator[RawSample]:
    from loopline.data import catalog, sources

    if name == PROSE:
        return _prose()
    entry = catalog.load().get(name)
    return sources.open_dataset(name, entry.task if entry else task)


def _prose() -> Iterator[RawSample]:
    """Lines of prose, labelled with their language's code."""
    from pydoc_data.topics import topics

    lines = (line.strip() for topic in topics.values() for line in topic.splitlines())
    prose = dict.fromkeys(line for line in lines if sum(map(str.isalpha, line)) >= LEAST_LETTERS)
    for number, line in enumerate(prose, start=1):
        yield RawSample(path=f"{PROSE}:{number}", image=None, text=line, label="en", boxes=None, split=None)
