"""Predict batches: in threads of this process, or in actors of Ray. Where they run changes no answer.

An engine takes pieces of work and yields each with its answers. A batch has the same samples in each engine, because an answer in
INT8 may depend on the others in its batch.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from loopline.batch import inputs
from loopline.errors import LooplineError
from loopline.lib import ray_cluster
from loopline.server.messages import Refusal
from loopline.server.model import Encoded, Model, Tensors

Answer = dict[str, Any]  # the columns of one row without its id
Contents = Sequence[str | bytes]  # texts, paths of images, or encoded images
MOST_DEATHS = 2  # of an actor with the same batches, before they are tried one by one
MOST_STARTS = 5  # actors in a row that do not start


class Work(Protocol):
    """What an engine takes. batches: the contents. fs: the file system of paths."""

    batches: list[Contents]
    fs: Any


Answered = Iterator[tuple[Any, list[Answer]]]
Engine = Callable[[Iterator[Any]], Answered]


def engine(kind: str, model: Model, slots: int) -> AbstractContextManager[Engine]:
    """An engine of this kind, `process` or `ray`, with so many threads or actors."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a slot is one core
    return actors(model, slots) if kind == "ray" else threads(model, slots)


@contextmanager
def threads(model: Model, slots: int) -> Iterator[Engine]:
    """Run up to `slots` batches at once. While one piece of work runs, the piece before it is taken, so two are in memory."""
    pool = ThreadPoolExecutor(slots, "slot")

    def run(works: Iterator[Any]) -> Answered:
        waiting = deque[tuple[Any, list[Future[list[Answer]]]]]()

        def first() -> tuple[Any, list[Answer]]:
            work, futures = waiting.popleft()
            return work, list(itertools.chain.from_iterable(future.result() for future in futures))

        for work in works:
            waiting.append((work, [pool.submit(answers, model, batch, work.fs) for batch in work.batches]))
            if len(waiting) > 1:
                yield first()
        while waiting:
            yield first()

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)


def answers(model: Model, contents: Contents, fs: Any = None) -> list[Answer]:
    """An answer or an error for each sample. If a batch fails, its samples are run one by one."""
    try:
        return _batch(model, contents, fs)
    except Exception as error:  # onnxruntime's errors have no common base
        if len(contents) == 1:
            return [{"error": f"the model failed on it: {inputs.reason(error)}"}]
        return [answer for content in contents for answer in answers(model, [content], fs)]


def _batch(model: Model, contents: Contents, fs: Any) -> list[Answer]:
    if model.spec.text:
        return _run(model, [model.prepare(Encoded([str(content) for content in contents]))])
    paths = [content for content in contents if isinstance(content, str)]
    fetched = iter(inputs.contents(paths, fs))
    data = [next(fetched) if isinstance(content, str) else content for content in contents]
    prepared = [each if isinstance(each, Exception) else _decoded(model, each) for each in data]
    ready = [item for item in prepared if not isinstance(item, Exception)]
    ready_answers = iter(_run(model, ready) if ready else [])
    return [{"error": inputs.reason(item)} if isinstance(item, Exception) else next(ready_answers) for item in prepared]


def _decoded(model: Model, data: bytes) -> Any:
    try:
        return model.prepare(Encoded([data]))
    except Refusal as refusal:
        return refusal


def _run(model: Model, prepared: list[Any]) -> list[Answer]:
    results = model.run([Tensors(item.arrays) for item in prepared])
    outputs = {name: np.concatenate([result[name] for result in results]) for name in model.output_names}
    return model.task.batch_answers(outputs, model.spec, np.concatenate([item.sizes for item in prepared]))


class Actor:
    """A process of a Ray cluster with the model. bundle: its files by name."""

    def __init__(self, bundle: dict[str, bytes]) -> None:
        """Open the model."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        with tempfile.TemporaryDirectory(prefix="loopline-bundle-") as name:
            for path, content in bundle.items():
                (Path(name) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(name) / path).write_bytes(content)
            self.model = Model(Path(name))

    def ready(self) -> None:
        """Return once the model is open."""

    def answers(self, batches: list[Contents], fs: Any) -> list[Answer]:
        """The answers of some batches."""
        return [answer for batch in batches for answer in answers(self.model, batch, fs)]


@dataclass
class Unit:
    """Batches that one actor gets at once. start: the place of its first sample in the work. deaths: of actors that had it."""

    work: Any
    start: int
    batches: list[Contents]
    deaths: int = 0

    def smaller(self) -> list[Unit]:
        """The same samples in smaller units: single batches, or single samples. Empty for a single sample."""
        parts = self.batches if len(self.batches) > 1 else [[content] for content in self.batches[0]]
        if len(parts) == 1:
            return []
        starts = itertools.accumulate((len(part) for part in parts), initial=self.start)
        return [Unit(self.work, start, [part]) for start, part in zip(starts, parts, strict=False)]


@contextmanager
def actors(model: Model, count: int) -> Iterator[Engine]:
    """Run each piece of work in one of `count` actors. An actor that dies is replaced, and its work is given to the next free one.

    If the same batches end two actors, they are tried one by one, then their samples. A sample that ends two actors gets an error.
    """
    with ray_cluster.joined(count) as ray:
        folder = model.bundle.folder
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        kind, bundle = ray.remote(num_cpus=1)(Actor), ray.put(files)
        yield lambda works: Pool(ray, lambda: kind.remote(bundle), count).run(works)


@dataclass
class Pool:
    """Actors, each of which has one unit at a time."""

    ray: Any
    make: Callable[[], Any]
    count: int
    busy: dict[Any, tuple[Any, Unit | None]] = field(default_factory=dict)  # by what Ray will give; no unit: it starts
    free: list[Any] = field(default_factory=list)
    again: deque[Unit] = field(default_factory=deque)
    answered: dict[int, list[Any]] = field(
        default_factory=dict
    )  # of each piece of work that is not done; None: no answer yet
    failures: int = 0  # actors in a row that did not start

    def run(self, works: Iterator[Any]) -> Answered:
        """Yield each piece of work with its answers, as it is done."""
        for _ in range(self.count):
            self._start()
        while True:
            while self.free and (unit := self._next(works)):
                actor = self.free.pop()
                self.busy[actor.answers.remote(unit.batches, unit.work.fs)] = (actor, unit)
            if self.free and not self.answered:
                return  # actors that still start are of no use
            if finished := self._wait():
                unit, got = finished
                row = self.answered[id(unit.work)]
                row[unit.start : unit.start + len(got)] = got
                if None not in row:
                    yield unit.work, self.answered.pop(id(unit.work))

    def _start(self) -> None:
        actor = self.make()
        self.busy[actor.ready.remote()] = (actor, None)

    def _next(self, works: Iterator[Any]) -> Unit | None:
        if self.again:
            return self.again.popleft()
        work = next(works, None)
        if work is None:
            return None
        self.answered[id(work)] = [None] * sum(map(len, work.batches))
        return Unit(work, 0, work.batches)

    def _wait(self) -> tuple[Unit, list[Answer]] | None:
        """Wait for an actor: return a unit with its answers; None if an actor started or died."""
        (done,), _ = self.ray.wait(list(self.busy), num_returns=1)
        actor, unit = self.busy.pop(done)
        try:
            got = self.ray.get(done)
        except self.ray.exceptions.RayTaskError as error:
            raise LooplineError(f"an actor cannot predict: {error.cause}") from error
        except self.ray.exceptions.RayError as error:  # the actor's process or its node
            self.failures += unit is None
            if self.failures == MOST_STARTS:
                raise LooplineError(f"no actor starts: {inputs.reason(error)}") from error
            self._start()
            return self._died(unit) if unit else None
        self.failures = 0
        self.free.append(actor)
        return (unit, got) if unit else None

    def _died(self, unit: Unit) -> tuple[Unit, list[Answer]] | None:
        unit.deaths += 1
        if unit.deaths < MOST_DEATHS:
            self.again.append(unit)
            return None
        if smaller := unit.smaller():
            self.again.extend(smaller)
            return None
        return unit, [{"error": f"its process died {MOST_DEATHS} times"}]
