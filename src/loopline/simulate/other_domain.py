"""For each data set another one that is unlike it: what a model is sent in trials of drift by the profile `other-domain`."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np

from loopline import tasks
from loopline.data.raw import RawSample
from loopline.errors import LooplineError

PROSE = "english-prose"  # of Python's own language reference, as the standard library has it
COMPANIONS = {
    "digits": "digit-scenes",
    "digit-scenes": "digits",
    "languages": PROSE,
    "fashion-mnist": "notmnist",
    "rt-polarity": "sentiment-labelled-sentences",
}
LEAST_LETTERS = 20  # of a line of prose: shorter ones are code and rulers


def of(dataset: str) -> str:
    """The companion of a data set. Raises LooplineError where it has none."""
    if dataset not in COMPANIONS:
        raise LooplineError(
            f"{dataset} has no companion: --dataset names another data set or folder; "
            f"there is one for {', '.join(COMPANIONS)}"
        )
    return COMPANIONS[dataset]


def read(name: str, task: str, most: int, seed: int = 0) -> list[RawSample]:
    """At most so many samples that a model of this task can take, drawn evenly from a data set of any task, or from a folder.

    A folder's labels are read as the task has them. Raises LooplineError where there is no such data set, where it has texts
    and the model takes images or the other way round, or where nothing in it can be used.
    """
    rng, content = np.random.default_rng(seed), tasks.find(task).content
    usable = (one for one in _open(name, task) if getattr(one, content) and not one.problem)
    found = heapq.nsmallest(most, usable, key=lambda _: rng.random())  # never more in memory
    if not found:
        raise LooplineError(f"{name} has no {content}s, which is what the model takes: name another data set or folder")
    return found


def _open(name: str, task: str) -> Iterator[RawSample]:
    from loopline.data import catalog, sources

    if name == PROSE:
        return _prose()
    known = catalog.load().get(name)
    return sources.open_dataset(name, known.task if known else task)


def _prose() -> Iterator[RawSample]:
    """Lines, labelled with the code of their language."""
    from pydoc_data.topics import topics

    lines = (line.strip() for topic in topics.values() for line in topic.splitlines())
    prose = dict.fromkeys(line for line in lines if sum(map(str.isalpha, line)) >= LEAST_LETTERS)
    for number, line in enumerate(prose, start=1):
        yield RawSample(path=f"{PROSE}:{number}", image=None, text=line, label="en", boxes=None, split=None)
